"""The benchmark's joined tables: sizes and quality, latency and memory, each beside the base of its compile state."""

from dataclasses import asdict
from pathlib import Path

import polars as pl

from ditscope.benchmark.recommend import recommendation
from ditscope.benchmark.run_tables import CASE_KEY, OF_RUN, RUN_FLAT, RUN_TIMING
from ditscope.benchmark.settings import Benchmark
from ditscope.benchmark.tables import BENCHMARK, FLAT_FIELD, OF_SETS, PAIRED, QUALITY, TARGETS, TIMING
from ditscope.core.atomic import write_text
from ditscope.core.counts import check_complete
from ditscope.core.intervals import ratio_interval
from ditscope.core.tables import concat_tables, write_table

CASE = ["model", "hardware", "compile"]  # ratios never leave a case: other states, hosts and models are other worlds


def benchmark_table(
    runs: list[Path],
    timings: list[Path],
    qualities: list[Path],
    flat_fields: list[Path],
    output_dir: Path,
    settings: Benchmark = Benchmark(),
) -> None:
    """Join the runs of every model, hardware, scheme and compile state, and recommend from them.

    Leaves in `output_dir`: `benchmark.parquet` (table `benchmark`: size and quality, a row per run),
    `benchmark.timing.parquet` (table `benchmark.timing`: latency and memory, a row per run and batch size),
    `quality.parquet` (table `benchmark.quality`, long), `flat_field.parquet` (table `benchmark.flat_field`),
    `targets.parquet` (table `benchmark.targets`: published latencies) and `recommendation.md`.
    """
    judged = concat_tables(qualities, QUALITY.name, QUALITY.key) if qualities else pl.DataFrame(schema=QUALITY.schema())
    sizes = with_quality(with_size_ratios(concat_tables(runs, OF_RUN.name, OF_RUN.key)), judged, settings.quality_bound)
    speeds = with_speed_ratios(concat_tables(timings, RUN_TIMING.name, RUN_TIMING.key))
    for table, files in ((sizes, runs), (speeds, timings)):
        key = [*CASE, "scheme", *(["batch"] if table is speeds else [])]
        asked = (row for file in files for row in pl.read_parquet(file, columns=key).select(key).iter_rows())
        check_complete(output_dir, "runs", asked, table.select(key).iter_rows())
    targets = [{"target": name} | asdict(target) for name, target in settings.targets.items()]
    write_table(sizes, output_dir / "benchmark.parquet", BENCHMARK)
    write_table(speeds, output_dir / "benchmark.timing.parquet", TIMING)
    write_table(judged, output_dir / "quality.parquet", QUALITY)
    flat = concat_tables(flat_fields, RUN_FLAT.name, RUN_FLAT.key)
    write_table(flat, output_dir / "flat_field.parquet", FLAT_FIELD)
    write_table(pl.DataFrame(targets, schema=TARGETS.schema()), output_dir / "targets.parquet", TARGETS)
    write_text(output_dir / "recommendation.md", recommendation(sizes, speeds, settings.quality_bound, judged))


def with_size_ratios(runs: pl.DataFrame) -> pl.DataFrame:
    """Runs with `nominal_ratio` and `stored_ratio`: bytes of the base over the scheme's own."""
    sizes = ["nominal_bytes", "stored_bytes"]
    case = ["model", "hardware"]  # compilation changes no size
    joined = runs.join(base_of(runs, case, sizes), on=case, how="left", maintain_order="left")
    ratios = [(pl.col(f"base_{s}") / pl.col(s)).alias(s.replace("_bytes", "_ratio")) for s in sizes]
    return joined.with_columns(ratios).drop(f"base_{s}" for s in sizes)


def with_speed_ratios(timings: pl.DataFrame) -> pl.DataFrame:
    """Timings with `speedup` (base latency over the scheme's) and `latency_reduction` (1 - its inverse).

    Both within one model, hardware, compile state and batch size; null where there is no base or no latency.
    `speedup_low` and `speedup_high` are a 95 % interval of the ratio of geometric means (eight runs of each or more),
    `speedup_verdict` is `quiet` where both timings are. Peaks get `peak_memory_ratio`: the scheme's steady peak over
    the base's, where both cover the same (`peak_covers`).
    """
    case = [*CASE, "batch"]
    of_base = ["latency_median_ms", "latencies_ms", "verdict", "steady_peak_bytes", "peak_covers"]
    joined = timings.join(base_of(timings, case, of_base), on=case, how="left", maintain_order="left")
    relative = pl.col("latency_median_ms") / pl.col("base_latency_median_ms")
    quiet = (pl.col("verdict") == "quiet") & (pl.col("base_verdict") == "quiet")
    of_others = pl.when(pl.col("kind") != "base").then(pl.col("latencies_ms"))
    pairs = joined.select("base_latencies_ms", of_others).rows()
    intervals = [ratio_interval(base or [], scheme or []) for base, scheme in pairs]
    alike = pl.col("peak_covers") == pl.col("base_peak_covers")
    return joined.with_columns(
        pl.Series("speedup_low", [low for low, _ in intervals], pl.Float64),
        pl.Series("speedup_high", [high for _, high in intervals], pl.Float64),
        speedup=1 / relative,
        speedup_verdict=pl.when(relative.is_not_null()).then(
            pl.when(quiet).then(pl.lit("quiet")).otherwise(pl.lit("noisy"))
        ),
        latency_reduction=1 - relative,
        peak_memory_ratio=pl.when(alike).then(pl.col("steady_peak_bytes") / pl.col("base_steady_peak_bytes")),
    ).drop(f"base_{column}" for column in of_base)


def base_of(table: pl.DataFrame, case: list[str], columns: list[str]) -> pl.DataFrame:
    """The base's `columns`, as `base_<column>`, one row per case."""
    base = table.filter(pl.col("kind") == "base").unique(case, keep="first", maintain_order=True)
    return base.select(*case, *(pl.col(c).alias(f"base_{c}") for c in columns))


def with_quality(runs: pl.DataFrame, judged: pl.DataFrame, bound: float) -> pl.DataFrame:
    """Runs with a column for each metric, the interval of the quality loss, what it says of `bound`, and n.

    `quality_verdict`: `within` where the whole 95 % interval is at most `bound`, `beyond` where all of it is more,
    else, and where there are too few prompts for an interval, `undecided`; null where quality was not judged. What the
    others are compared with, the base in eager mode, is `within` by definition.
    """
    key = list(CASE_KEY)
    metrics = judged["metric"].unique(maintain_order=True).to_list() or [*PAIRED, *OF_SETS]
    wide = judged.pivot("metric", on_columns=metrics, index=key, values="value", maintain_order=True)
    loss = judged.filter(pl.col("metric") == "quality_loss").select(
        *key, pl.col("low").alias("quality_loss_low"), pl.col("high").alias("quality_loss_high"), "n", "n_prompts"
    )
    wide = wide.join(loss, on=key, how="left", maintain_order="left")
    verdict = (
        pl.when(pl.col("quality_loss").is_null())
        .then(None)
        .when((pl.col("quality_loss_high") <= bound) | ((pl.col("kind") == "base") & (pl.col("compile") == "eager")))
        .then(pl.lit("within"))
        .when(pl.col("quality_loss_low") > bound)
        .then(pl.lit("beyond"))
        .otherwise(pl.lit("undecided"))
    )
    joined = runs.join(wide, on=key, how="left", maintain_order="left")
    return joined.with_columns(quality_bound=pl.lit(bound), quality_verdict=verdict)
