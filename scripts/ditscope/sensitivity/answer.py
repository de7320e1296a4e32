"""What the stage `sensitivity` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.core.answer import Answer, measured
from ditscope.core.tables import Files, concat_tables, named
from ditscope.sensitivity.tables import IMAGE_METRIC, WHOLE

QUESTION = "Which layer bears few bits worst?"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """The layer that alone changes the finished picture most at the fewest bits, beside the median layer."""
    paths = named(files, "sensitivity", "sensitivity.parquet")
    table = concat_tables(paths, "sensitivity")
    whole = table.filter(pl.col("metric") == IMAGE_METRIC, pl.col("bucket").cast(pl.String) == WHOLE)
    if whole.is_empty():  # of tables that know the velocity only
        whole, figure, what = (
            table.filter(metric="relative_l2"),
            "sensitivity-heatmap",
            "velocity by {}, relative to its norm",
        )
    else:
        figure, what = "image-sensitivity", "finished picture by {}, as root mean square of values 0 to 1"
    fewest = whole.filter(pl.col("bits") == pl.col("bits").min().over("model"))
    worst = fewest.sort("value", "layer", descending=[True, False]).row(0, named=True)
    median = fewest.filter(model=worst["model"])["value"].median()
    number = measured(worst["value"], worst["value_low"], worst["value_high"], worst["n_images"], "image")
    return Answer(
        QUESTION,
        f"{worst['layer']} of {worst['model']}: at {worst['bits']} bits it alone changes the {what.format(number)}; "
        f"the median layer {median:.2g}.",
        figure,
        worst["n_images"],
        "image",
        worst["value"],
        worst["value_low"],
        worst["value_high"],
        ("first-order estimate",) if worst["mode"] == "fast" else (),
    )
