"""What the stage `cluster` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.core.answer import Answer, counted, cut, percent
from ditscope.core.tables import Files, concat_tables, named

QUESTION = "Where do trajectories gather?"
FIGURE = "cluster-map"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """How many clusters the embedder with the stablest ones gives, and what the largest one is about."""
    tables = {
        name: concat_tables(named(files, "cluster", f"{name}.parquet"), table)
        for name, table in (("stability", "clusters.stability"), ("clusters", "clusters"))
    }
    known = tables["stability"].filter(~pl.col("embedder").is_in(list(controls)))
    sure = known.filter(pl.col("degenerate").is_null()).drop_nulls("ari")
    if sure.is_empty():
        reasons = [*known["degenerate"].drop_nulls(), *known["reason"].drop_nulls()]
        told = f"Nobody can tell: {reasons[0] if reasons else 'nothing was clustered'}."
        return Answer(QUESTION, told, FIGURE, int(known["prompts"].max() or 0), "prompt")
    row = sure.sort("ari", "embedder", descending=[True, False]).row(0, named=True)
    states = tables["clusters"].filter(embedder=row["embedder"]).drop_nulls("label")
    largest = states.filter(label=0)
    outliers = states.filter(label=-1)
    poor = states.filter(pl.col("degenerate").is_not_null())["network"].unique().sort().to_list()
    about = f"; the largest is about “{cut(largest['medoid_text'][0] or 'no text')}”" if len(largest) else ""
    return Answer(
        QUESTION,
        f"Under {row['embedder']} {counted(row['states'], 'state')} make {counted(row['clusters'], 'cluster')} "
        f"({percent(len(outliers) / max(len(states), 1))} outliers) that halves of the prompts give again with an "
        f"adjusted Rand index of {row['ari']:.2f} (95 % of {row['draws']} draws {row['low']:.2f} to {row['high']:.2f}, "
        f"n = {counted(row['prompts'], 'prompt')}){about}.",
        FIGURE,
        row["prompts"],
        "prompt",
        row["ari"],
        row["low"],
        row["high"],
        (f"degenerate: {counted(len(poor), 'network')}",) if poor else (),
    )
