"""The table `sensitivity`: kinds of layers, timestep buckets, samples to rows, groups of layers to one table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from ditscope.calibration_set import CalibrationSet, Reference
from ditscope.errors import InputError
from ditscope.tables import concat_tables, write_table

BUCKETS = ("early", "mid", "late")
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
COLUMNS = (
    "model", "layer", "kind", "depth", "module", "bits", "quantizer", "group_size", "shared_weights", "bucket",
    "metric", "value", "value_std", "n_samples", "parameters",
)  # fmt: skip


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


def tabulate(rows: list[dict[str, Any]], layers: list[dict[str, Any]], constants: dict[str, Any]) -> pl.DataFrame:
    """Average per-sample scores (layer, bits, bucket and one column a metric) into rows of the table `sensitivity`.

    `layers` says of each layer what does not depend on bits or bucket, `constants` what holds for the whole table.
    """
    keys = ["layer", "bits", "bucket"]
    metrics = [key for key in rows[0] if key not in keys]
    return (
        pl.DataFrame(rows)
        .unpivot(metrics, index=keys, variable_name="metric")
        .group_by(*keys, "metric", maintain_order=True)
        .agg(
            pl.col("value").mean(),
            pl.col("value").std(ddof=0).alias("value_std"),
            pl.len().cast(pl.Int64).alias("n_samples"),
        )
        .join(pl.DataFrame(layers), on="layer", how="left", maintain_order="left")
        .with_columns(pl.lit(value).alias(name) for name, value in constants.items())
        .with_columns(pl.col("bucket").cast(pl.Enum(BUCKETS)), pl.col("bits", "group_size").cast(pl.Int64))
        .select(COLUMNS)
    )


def gather(tables: Iterable[Path], out: Path) -> None:
    """Join the tables of all models and layer groups, sorted by model, place in the network, bits and bucket."""
    table = concat_tables(tables, "sensitivity")
    write_table(table.sort("model", "depth", "layer", "bits", "bucket", "metric"), out, "sensitivity")
