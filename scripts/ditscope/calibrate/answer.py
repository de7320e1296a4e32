"""What the stage `calibrate` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.core.answer import Answer, counted
from ditscope.core.tables import Files, concat_tables, named

QUESTION = "Do a few channels set the scale of quantized activations?"
FIGURE = "activation-range"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """The layer with the largest outlier, and in how many layers any channel stands out."""
    paths = named(files, "calibrate", "activations.parquet")
    table = concat_tables(paths, "calibration.activations") if paths else pl.DataFrame()
    known = table.drop_nulls("outlier_ratio") if len(table) else table
    if known.is_empty():
        return Answer(QUESTION, "No layer's activations were recorded.", FIGURE, 0, "sample")
    worst = known.sort("outlier_ratio", descending=True).row(0, named=True)
    layers = known.group_by("model", "layer").agg(pl.col("outliers").max())
    some = int((layers["outliers"] > 0).sum())
    return Answer(
        QUESTION,
        f"Most in {worst['layer']} of {worst['model']}: its largest input is {worst['outlier_ratio']:.3g} times that "
        f"of the median channel (step {worst['step_index'] + 1}, n = {counted(worst['n'], 'sample')}); a channel above "
        f"10 times stands out in {some} of {counted(len(layers), 'layer')}.",
        FIGURE,
        worst["n"],
        "sample",
        worst["outlier_ratio"],
    )
