"""The benchmark's joined tables: sizes and quality, latency and memory, each beside the base of its compile state."""

from pathlib import Path

import polars as pl

from ditscope.tables import concat_tables, write_table

IDENTITY = ("model", "hardware", "scheme", "kind", "compile")
QUALITY_TYPES = {
    **dict.fromkeys((*IDENTITY, "metric"), pl.String),
    **dict.fromkeys(("value", "low", "high"), pl.Float64),
    "n": pl.Int64,
    "small_n": pl.Boolean,
    "reason": pl.String,
}
CASE = ["model", "hardware", "compile"]  # ratios never leave a case: other states, hosts and models are other worlds


def benchmark_table(
    runs: list[Path],
    timings: list[Path],
    qualities: list[Path],
    out: Path,
    timing: Path,
    quality: Path,
) -> None:
    """Join the runs of every model, hardware, scheme and compile state.

    Leaves `out` (table `benchmark`: size and quality, a row a run), `timing` (table `benchmark.timing`: latency and
    memory, a row a run and batch size) and `quality` (table `benchmark.quality`, long).
    """
    judged = concat_tables(qualities, "benchmark.quality") if qualities else None
    write_table(with_quality(with_size_ratios(concat_tables(runs, "benchmark.run")), judged), out, "benchmark")
    write_table(with_speed_ratios(concat_tables(timings, "benchmark.run.timing")), timing, "benchmark.timing")
    write_table(judged if judged is not None else pl.DataFrame(schema=QUALITY_TYPES), quality, "benchmark.quality")


def with_size_ratios(runs: pl.DataFrame) -> pl.DataFrame:
    """Runs with `nominal_ratio` and `stored_ratio`: bytes of the base over the scheme's own."""
    sizes = ["nominal_bytes", "stored_bytes"]
    case = ["model", "hardware"]  # compilation changes no size
    joined = runs.join(base_of(runs, case, sizes), on=case, how="left", maintain_order="left")
    ratios = [(pl.col(f"base_{s}") / pl.col(s)).alias(s.replace("_bytes", "_ratio")) for s in sizes]
    return joined.with_columns(ratios).drop(f"base_{s}" for s in sizes)


def with_speed_ratios(timings: pl.DataFrame) -> pl.DataFrame:
    """Timings with `speedup` (base latency over the scheme's) and `latency_reduction` (1 - its inverse).

    Both within one model, hardware, compile state and batch size; null where there is no base or no latency. Peaks get
    `peak_memory_ratio`: the scheme's steady peak over the base's, reserved bytes on CUDA, resident ones elsewhere.
    """
    case = [*CASE, "batch"]
    peak = pl.coalesce("steady_peak_reserved_bytes", "steady_peak_rss_bytes").alias("peak")
    timings = timings.with_columns(peak)
    joined = timings.join(
        base_of(timings, case, ["latency_median_ms", "peak"]), on=case, how="left", maintain_order="left"
    )
    relative = pl.col("latency_median_ms") / pl.col("base_latency_median_ms")
    return joined.with_columns(
        speedup=1 / relative,
        latency_reduction=1 - relative,
        peak_memory_ratio=pl.col("peak") / pl.col("base_peak"),
    ).drop("peak", "base_peak", "base_latency_median_ms")


def base_of(table: pl.DataFrame, case: list[str], columns: list[str]) -> pl.DataFrame:
    """The base's `columns`, as `base_<column>`, one row a case."""
    base = table.filter(pl.col("kind") == "base").unique(case, keep="first", maintain_order=True)
    return base.select(*case, *(pl.col(c).alias(f"base_{c}") for c in columns))


def with_quality(runs: pl.DataFrame, judged: pl.DataFrame | None) -> pl.DataFrame:
    """Runs with a column for each metric, the interval of the quality loss, and n."""
    if judged is None:
        return runs
    key = ["model", "hardware", "scheme", "compile"]
    wide = judged.pivot("metric", index=key, values="value", maintain_order=True)
    loss = judged.filter(pl.col("metric") == "quality_loss").select(
        *key, pl.col("low").alias("quality_loss_low"), pl.col("high").alias("quality_loss_high"), pl.col("n")
    )
    wide = wide.join(loss, on=key, how="left", maintain_order="left")
    return runs.join(wide, on=key, how="left", maintain_order="left")
