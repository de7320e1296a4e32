"""The table `sensitivity`: kinds of layers, timestep buckets, samples to rows, groups of layers to one table."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.calibrate.files import CalibrationSet, Reference
from ditscope.core.errors import InputError
from ditscope.core.intervals import mean_interval
from ditscope.core.tables import concat_tables, write_table

BUCKETS = ("early", "mid", "late")
WHOLE = "all"  # in place of a bucket: the layer is quantized in every step
# Kinds of layers, by what their names in diffusers contain; the first that fits holds.
KINDS = (
    ("modulation", ("norm",)),
    ("mlp_text", ("ff_context.",)),
    ("attention_text", ("attn.add_", "attn.to_add_out")),
    ("attention", ("attn.", "attn2.")),
    ("mlp", (".ff.", ".proj_mlp", "blocks.")),  # a single block's proj_out reads its MLP and its attention
    ("output", ("proj_out",)),
    ("embedder", ("",)),
)
LAYER_KINDS = tuple(kind for kind, _ in KINDS)
COLUMNS = (
    "model", "backend", "layer", "kind", "depth", "module", "bits", "quantizer", "group_size", "shared_weights",
    "bucket", "metric", "value", "value_std", "value_low", "value_high", "n_samples", "n_images", "parameters",
    "packed_bytes", "mode",
)  # fmt: skip
KEY = ("model", "layer", "bits", "bucket", "metric")
METRICS = ("psnr_db", "sqnr_db", "relative_l2")  # of the velocity
IMAGE_METRIC = "image_rms"
SIZES = {"layer": pl.String, "bits": pl.Int64, "packed_bytes": pl.Int64}
SUMMARY = {
    **dict.fromkeys(("value", "value_std", "value_low", "value_high"), pl.Float64),
    **dict.fromkeys(("n_samples", "n_images"), pl.Int64),
}


def layer_kind(name: str) -> str:
    """What a layer does, told from its name: one of the kinds of `KINDS`."""
    return next(kind for kind, parts in KINDS if any(part in name for part in parts))


def assign_buckets(found: CalibrationSet, rule: str, where: Path) -> dict[Reference, str]:
    """The timestep bucket of each sample: thirds of the steps, or sigma > 0.7 / 0.3 to 0.7 / < 0.3.

    Raises InputError where a bucket stays empty.
    """

    def bucket(sample: Reference) -> int:
        if rule == "thirds":
            return sample.step_index * 3 // found.num_steps
        return 0 if sample.sigma > 0.7 else 1 if sample.sigma >= 0.3 else 2

    assigned = {sample: BUCKETS[bucket(sample)] for sample in found.samples}
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
    found = [summary(np.array(row["value"]), row["image"], row["metric"], squared) for row in lists.to_dicts()]
    return (
        pl.concat([lists.drop("value", "image"), pl.DataFrame(found, schema=SUMMARY)], how="horizontal")
        .join(pl.DataFrame(layers), on="layer", how="left", maintain_order="left")
        .join(pl.DataFrame(sizes, schema=SIZES), on=["layer", "bits"], how="left", maintain_order="left")
        .with_columns(pl.lit(value).alias(name) for name, value in constants.items())
        .with_columns(
            pl.col("bucket").cast(pl.Enum([*BUCKETS, WHOLE])),
            pl.col("bits", "group_size", "depth", "shared_weights", "parameters", "packed_bytes").cast(pl.Int64),
        )
        .select(COLUMNS)
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
    table = concat_tables(tables, "sensitivity", KEY)
    write_table(table.sort("model", "depth", "layer", "bits", "bucket", "metric"), out, "sensitivity")
    if agreement is not None:
        compared = rank_agreement(table, concat_tables(fast, "sensitivity", KEY))
        write_table(compared, agreement, "sensitivity.agreement")


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
