"""What the stage `refine` answers."""

from collections.abc import Collection

import polars as pl

from ditscope.core.answer import Answer, counted, measured
from ditscope.core.tables import Files, named, read_table

QUESTION = "Does one step put interpolated latents right?"
FIGURE = "refiner-evaluation"


def answer(files: Files, controls: Collection[str] = ()) -> Answer:
    """Error on missing tokens with the fewest keys, refined and interpolated: the refiner that gains most."""
    tables = [
        read_table(path, "refine.evaluation").with_columns(refiner=pl.lit(path.parent.name))
        for path in named(files, "refine", "evaluation.parquet")
    ]
    errors = pl.concat(tables).filter(metric="missing_error") if tables else pl.DataFrame()
    if errors.is_empty():
        return Answer(QUESTION, f"Nobody can tell: {counted(0, 'refiner')} evaluated.", FIGURE, 0, "unit")
    hardest = errors.filter(pl.col("level") == pl.col("level").max().over("refiner"))
    refined = hardest.filter(method="refined").drop_nulls("gain").sort("gain", "refiner", descending=[True, False])
    if refined.is_empty():
        return Answer(QUESTION, "Nobody can tell: no refined sample was evaluated.", FIGURE, 0, "unit")
    row = refined.row(0, named=True)
    gain = measured(row["gain"], row["gain_low"], row["gain_high"], row["units"], "unit")
    return Answer(
        QUESTION,
        f"{row['refiner']}, with {counted(row['keys'], 'key')} known: mean squared error of missing tokens "
        f"{row['value']:.3g} after the step, {row['value'] + row['gain']:.3g} interpolated; gain {gain}.",
        FIGURE,
        row["units"],
        "unit",
        row["gain"],
        row["gain_low"],
        row["gain_high"],
    )
