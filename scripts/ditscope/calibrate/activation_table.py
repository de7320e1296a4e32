"""The table `calibration.activations`: what each layer is given at each step, channel by channel, over all images.

Every slice of images leaves a part: extremes and sums by channel, which merge to the whole without the activations.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.calibrate.tables import ACTIVATIONS, CHANNELS, PART, PERCENTILES
from ditscope.core.tables import concat_tables, write_table
from ditscope.sensitivity.tables import layer_kind

DECAY = 0.95  # of the moving average over images
OUTLIER_RATIO = 10.0  # an outlier channel's largest magnitude is over this many times that of the median channel


def gather_activations(shards: Iterable[Path], out: Path) -> None:
    """Merge the parts `activations/*.parquet` of finished shards, in their order, to the table of a whole set."""
    files = [file for shard in shards for file in sorted(shard.glob("activations/*.parquet"))]
    parts = concat_tables(files, PART.name) if files else pl.DataFrame(schema=PART.schema())
    write_table(activation_table(parts), out, ACTIVATIONS)


def activation_table(parts: pl.DataFrame) -> pl.DataFrame:
    """One row for each layer, in network order, and step from the parts of all slices, which come in image order."""
    merged: dict[tuple[str, int], dict[str, Any]] = {}
    for row in parts.iter_rows(named=True):
        key = row["layer"], row["step_index"]
        part = row | {name: np.array(row[name], np.float64) for name in CHANNELS}
        merged[key] = merge(merged[key], part) if key in merged else part
    order = {layer: place for place, layer in enumerate(dict.fromkeys(layer for layer, _ in merged))}
    rows = [described(merged[key]) for key in sorted(merged, key=lambda key: (order[key[0]], key[1]))]
    return pl.DataFrame(rows, schema=ACTIVATIONS.schema())


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The part of two parts, the images of `first` before those of `second`: extremes, sums, decayed sums."""
    joined = {
        "n": first["n"] + second["n"],
        "channel_min": np.minimum(first["channel_min"], second["channel_min"]),
        "channel_max": np.maximum(first["channel_max"], second["channel_max"]),
        "channel_shift": first["channel_shift"] * DECAY ** second["n"] + second["channel_shift"],
    }
    return first | joined | {name: first[name] + second[name] for name in PERCENTILES}


def described(part: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: means of the sums, and which channels are far larger than the median one."""
    absmax = np.maximum(abs(part["channel_min"]), abs(part["channel_max"]))
    median = float(np.median(absmax))
    outliers = np.flatnonzero(absmax > OUTLIER_RATIO * median).tolist() if median else []
    return part | {
        "kind": layer_kind(part["layer"]),
        "channels": len(absmax),
        "absmax": float(absmax.max()),
        "outlier_ratio": float(absmax.max()) / median if median else None,
        "outliers": len(outliers),
        "outlier_channels": outliers,
        **{name: part[name] / part["n"] for name in PERCENTILES},
        "channel_shift": part["channel_shift"] / (1 - DECAY ** part["n"]),
    }
