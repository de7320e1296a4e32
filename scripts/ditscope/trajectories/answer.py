"""What the stage `trajectories` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.core.answer import Answer, counted
from ditscope.core.tables import Files, concat_tables

QUESTION = "Do loops of text and image settle?"
FIGURE = "distinct-states"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """How many runs came back to an earlier state, by kind of seeds, and how many different pictures a run draws."""
    paths = [path for path in files["trajectories"] if path.suffix == ".parquet" and ".timing" not in path.name]
    table = concat_tables(paths, "trajectories")
    runs = table.filter(sequence_number=-1)
    told = []
    for derived, kind in ((False, "fixed"), (True, "derived")):
        some = runs.filter(derived_seed=derived)
        if len(some):
            back = some.filter(stop_reason="repeat")
            length = f" (loops of {back['loop_length'].median():g} invocations)" if len(back) else ""
            told.append(f"{len(back)} of {len(some)} runs with {kind} seeds came back to an earlier state{length}")
    pictures = table.filter(type="IMAGE").group_by("network", "run_id").agg(pl.col("output_key").n_unique(), pl.len())
    distinct, drawn = (pictures[column].median() or 0 for column in ("output_key", "len"))
    n = runs["prompt_id"].n_unique()
    return Answer(
        QUESTION,
        f"{'; '.join(told)}; the median run has {distinct:g} different pictures among {drawn:g} "
        f"(n = {counted(n, 'prompt')}, {counted(runs['network'].n_unique(), 'network')}).",
        FIGURE,
        n,
        "prompt",
        float((runs["stop_reason"] == "repeat").mean() or 0),
    )
