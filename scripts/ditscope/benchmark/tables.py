"""Columns of the benchmark's tables that several of its modules write or read."""

from typing import Any

import polars as pl

Types = dict[str, Any]

NOISE_FLOOR = "noise floor"  # kind of the row of the base, sampled in another batch
IDENTITY = ("model", "hardware", "scheme", "kind", "compile")
QUALITY_TYPES: Types = {
    **dict.fromkeys((*IDENTITY, "metric"), pl.String),
    **dict.fromkeys(("value", "low", "high"), pl.Float64),
    **dict.fromkeys(("n", "n_prompts"), pl.Int64),
    "small_n": pl.Boolean,
    "reason": pl.String,
}
FLAT_TYPES: Types = {
    **dict.fromkeys(IDENTITY, pl.String),
    **dict.fromkeys(("steps", "seed"), pl.Int64),
    "noise": pl.Float64,
}
TARGET_TYPES: Types = {
    **dict.fromkeys(("target", "model", "source"), pl.String),
    "batch": pl.Int64,
    "latency_ms": pl.Float64,
}
