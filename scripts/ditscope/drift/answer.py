"""What the stage `drift` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.core.answer import Answer, counted
from ditscope.core.tables import Files, concat_tables, named

QUESTION = "Do trajectories go further than chance would take them?"
FIGURE = "drift-walks"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """The distance of runs beside that of walks made of their own steps: of all tests, and of the clearest one."""
    nulls = concat_tables(named(files, "drift", "nulls.parquet"), "drift.nulls")
    asked = nulls.filter(pl.col("claim").cast(pl.String) == "walk", ~pl.col("embedder").is_in(list(controls)))
    poor = asked.filter(pl.col("degenerate").is_not_null())
    tests = asked.filter(pl.col("degenerate").is_null()).drop_nulls(["statistic", "p_holm"])
    caveats = (f"{len(poor)} of {len(asked)} degenerate, left out",) if len(poor) else ()
    if tests.is_empty():
        reasons = [*poor["degenerate"].drop_nulls(), *asked["reason"].drop_nulls()]
        told = f"Nobody can tell: {reasons[0] if reasons else 'nothing was tested'}."
        return Answer(QUESTION, told, FIGURE, int(asked["prompts"].max() or 0), "prompt", caveats=caveats)
    sure = tests.filter(pl.col("p_holm") < 0.05)
    further = sure.filter(pl.col("statistic") > pl.col("null_high"))
    less = sure.filter(pl.col("statistic") < pl.col("null_low"))
    row = tests.sort("p_holm", "embedder", "network").row(0, named=True)
    verdict = f"further in {len(further)}, less far in {len(less)} of {counted(len(tests), 'test')}"
    return Answer(
        QUESTION,
        f"{verdict[0].upper()}{verdict[1:]}: {row['network']} under {row['embedder']} is {row['statistic']:.3g} from "
        f"its start, where walks of its own steps are {row['null_low']:.3g} to {row['null_high']:.3g} (95 %; p = "
        f"{row['p_holm']:.2g} after Holm, n = {counted(row['prompts'], 'prompt')}).",
        FIGURE,
        row["prompts"],
        "prompt",
        row["statistic"],
        caveats=caveats,
    )
