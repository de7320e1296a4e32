"""Scores of samples to rows of the table `sensitivity`, by timestep bucket, and groups of layers to one table."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.calibrate.files import CalibrationSet, Reference
from ditscope.core.errors import InputError
from ditscope.core.intervals import mean_interval
from ditscope.core.tables import concat_tables, write_table
from ditscope.sensitivity.buckets import BUCKETS, bucket_of_sigma, bucket_of_step
from ditscope.sensitivity.tables import AGREEMENT, IMAGE_METRIC, METRICS, SENSITIVITY

SIZES = {"layer": pl.String, "bits": pl.Int64, "packed_bytes": pl.Int64}
SUMMARY = {
    **dict.fromkeys(("value", "value_std", "value_low", "value_high"), pl.Float64),
    **dict.fromkeys(("n_samples", "n_images"), pl.Int64),
}


def assign_buckets(calibration: CalibrationSet, rule: str, where: Path) -> dict[Reference, str]:
    """The timestep bucket of each sample by the rule `thirds` or `sigma`; raises InputError where one stays empty."""

    def bucket(sample: Reference) -> str:
        return (
            bucket_of_step(sample.step_index, calibration.num_steps)
            if rule == "thirds"
            else bucket_of_sigma(sample.sigma)
        )

    assigned = {sample: bucket(sample) for sample in calibration.samples}
    for name in BUCKETS:
        if name not in assigned.values():
            raise InputError(
                f"{where}: no calibration sample in bucket `{name}` ({rule}); use more steps or a smaller step_stride"
            )
    return assigned


def tabulate(
    rows: pl.DataFrame,
    layers: list[dict[str, Any]],
    constants: dict[str, Any],
    metrics: Sequence[str] = METRICS,
    sizes: Sequence[dict[str, Any]] = (),
) -> pl.DataFrame:
    """Average per-sample scores (layer, bits, bucket, image, a column per metric) into rows of the table `sensitivity`.

    `layers` says of each layer what does not depend on bits or bucket, `sizes` the packed bytes of layer and bits (null
    where they are not given), `constants` what holds for the whole table;
    in its mode `fast` the scores are squared error ratios. Intervals are those of `mean_interval` over the images of a
    cell, null where they are too few.
    """
    keys = ["layer", "bits", "bucket", "metric"]
    cells = rows.unpivot(metrics, index=[*keys[:-1], "image"], variable_name="metric")
    lists = cells.group_by(*keys, maintain_order=True).agg("value", "image")
    squared = constants["mode"] == "fast"
    summaries = [summary(np.array(row["value"]), row["image"], row["metric"], squared) for row in lists.to_dicts()]
    return (
        pl.concat([lists.drop("value", "image"), pl.DataFrame(summaries, schema=SUMMARY)], how="horizontal")
        .join(pl.DataFrame(layers), on="layer", how="left", maintain_order="left")
        .join(pl.DataFrame(sizes, schema=SIZES), on=["layer", "bits"], how="left", maintain_order="left")
        .with_columns(pl.lit(value).alias(name) for name, value in constants.items())
        .select(pl.col(name).cast(dtype) for name, dtype in SENSITIVITY.schema().items())
    )


def summary(scores: np.ndarray, images: Sequence[int], metric: str, squared: bool) -> dict[str, float | int | None]:
    """Mean, standard deviation and interval over the images of the scores of one cell, and how many there are.

    Timesteps and probes of one image are averaged first: images are what was drawn. Of `squared` error ratios the mean
    is taken before the metric: a root or a logarithm of single probes would be biased. Their `value_std` is by the
    delta method, so that value_std / sqrt(n_images) is the standard error in every mode.
    """
    root = metric in ("relative_l2", IMAGE_METRIC)
    mean, std, low, high, units = mean_interval(scores, images, positive=squared or root)
    if squared:
        convert: Callable[[float], float] = np.sqrt if root else minus_decibel
        slope = (0.5 / np.sqrt(mean) if mean else 0.0) if root else 10 / np.log(10) / mean
        std = None if std is None else slope * std
        ends = [None if end is None else float(convert(end)) for end in (low, high)]
        mean, (low, high) = float(convert(mean)), ends if root else ends[::-1]
    return {
        "value": mean,
        "value_std": std,
        "value_low": low,
        "value_high": high,
        "n_samples": len(scores),
        "n_images": units,
    }


def minus_decibel(ratio: float) -> float:
    """Decibels of the inverse of a power ratio."""
    return -10 * np.log10(ratio)


def gather(tables: Iterable[Path], out: Path, fast: Iterable[Path] = (), agreement: Path | None = None) -> None:
    """Join the tables of all models and layer groups, sorted by model, place in the network, bits and bucket.

    `agreement` becomes the table `sensitivity.agreement` of these against the `fast` ones.
    """
    table = concat_tables(tables, "sensitivity", SENSITIVITY.key)
    write_table(table.sort("model", "depth", "layer", "bits", "bucket", "metric"), out, SENSITIVITY)
    if agreement is not None:
        compared = rank_agreement(table, concat_tables(fast, "sensitivity", SENSITIVITY.key))
        write_table(compared, agreement, AGREEMENT)


def rank_agreement(table: pl.DataFrame, fast: pl.DataFrame) -> pl.DataFrame:
    """Spearman's rank correlation over the layers of two tables `sensitivity`, by model, bucket, bits and metric."""
    keys = ["model", "bucket", "bits", "metric"]
    both = table.join(fast.select(*keys, "layer", "value"), on=[*keys, "layer"], suffix="_fast")
    return (
        both.group_by(*keys)
        .agg(
            pl.corr("value", "value_fast", method="spearman").alias("spearman"), pl.len().cast(pl.Int64).alias("layers")
        )
        .sort(keys)
    )
