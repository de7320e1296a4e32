"""What the stage `topology` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.core.answer import Answer, counted
from ditscope.core.tables import Files, concat_tables, named

QUESTION = "Have trajectories more shape than chance gives?"
FIGURE = "shape-nulls"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """Verdicts of all tests, and the loops of the network that were tested on most prompts."""
    nulls = concat_tables(named(files, "topology", "nulls.parquet"), "topology.nulls")
    asked = nulls.filter(~pl.col("embedder").is_in(list(controls)))
    keys = ["embedder", "network", "dimension"]
    poor = asked.filter(pl.col("degenerate").is_not_null()).select(keys).unique()
    tests = asked.filter(pl.col("degenerate").is_null()).drop_nulls(["verdict", "statistic"])
    caveats = (f"{len(poor)} of {asked.select(keys).n_unique()} degenerate, left out",) if len(poor) else ()
    if tests.is_empty():
        reasons = [*asked["degenerate"].drop_nulls(), *asked["reason"].drop_nulls()]
        told = f"Nobody can tell: {reasons[0] if reasons else 'nothing was tested'}."
        return Answer(QUESTION, told, FIGURE, int(asked["prompts"].max() or 0), "prompt", caveats=caveats)
    verdicts = tests.unique(keys)
    longer, shorter = (int((verdicts["verdict"] == f"{word} than chance").sum()) for word in ("longer", "shorter"))
    loops = tests.with_columns(pl.col("dimension", "null").cast(pl.String)).filter(null="walk")
    order = pl.col("dimension") != "H₁"
    row = loops.sort(order, -pl.col("prompts"), "embedder", "network").row(0, named=True)
    return Answer(
        QUESTION,
        f"More in {longer}, less in {shorter} of {counted(len(verdicts), 'test')}: the {row['dimension']} bars of "
        f"{row['network']} under {row['embedder']} are {row['statistic']:.2g} long together, those of walks "
        f"{row['null_low']:.2g} to {row['null_high']:.2g} (95 %, n = {counted(row['prompts'], 'prompt')}): "
        f"{row['verdict']}.",
        FIGURE,
        row["prompts"],
        "prompt",
        row["statistic"],
        caveats=caveats,
    )
