"""Tables that more than one figure draws, read from what the stages left."""

from pathlib import Path

import polars as pl

from ditscope.core.tables import concat_tables
from ditscope.publish.figures import Files

STATE = ["embedder", "network", "run_id", "sequence_number"]
CASE = ["model", "hardware", "scheme", "compile"]


def named(files: Files, stage: str, name: str) -> list[Path]:
    """The files of a stage whose name is `name`."""
    return [path for path in files[stage] if path.name == name]


def labelled_map(files: Files) -> pl.DataFrame:
    """The t-SNE points that have coordinates, each with its cluster label and text."""
    points = concat_tables(named(files, "cluster", "map.parquet"), "clusters.map")
    labels = concat_tables(named(files, "cluster", "clusters.parquet"), "clusters")
    joined = points.join(labels.select(*STATE, "label", "text"), on=STATE, how="left", maintain_order="left")
    return joined.drop_nulls(["x", "y"])


def drift_quantiles(files: Files) -> pl.DataFrame:
    """Quartiles over runs of the cosine distance to the first state: columns q25, q50, q75, runs."""
    table = concat_tables(named(files, "drift", "drift.parquet"), "drift").drop_nulls("cosine_distance")
    keys = ["embedder", "network", "control", "sequence_number"]
    quantiles = [pl.col("cosine_distance").quantile(q / 100, "linear").alias(f"q{q}") for q in (25, 50, 75)]
    return table.group_by(keys).agg(*quantiles, pl.len().alias("runs")).sort(keys)


def benchmark_points(files: Files) -> pl.DataFrame:
    """Nominal and stored size beside the quality loss (value, low, high) of every measured case."""
    quality = concat_tables(named(files, "benchmark", "quality.parquet"), "benchmark.quality")
    quality = quality.filter(pl.col("metric") == "quality_loss").select(*CASE, "value", "low", "high")
    sizes = concat_tables(named(files, "benchmark", "benchmark.parquet"), "benchmark")
    sizes = sizes.select(
        *CASE, "nominal_bytes", "stored_bytes", "simulated", "quality_bound", "quality_verdict"
    ).unique(CASE, maintain_order=True)
    return sizes.join(quality, on=CASE, how="inner", maintain_order="left").drop_nulls("value")
