"""Rule benchmark_table: all runs in one table of sizes and quality and one of latency and memory."""

from pathlib import Path

from ditscope.benchmark_table import benchmark_table
from ditscope.job import job

with job(snakemake):
    benchmark_table(
        runs=[Path(path) for path in snakemake.input.runs],
        timings=[Path(path) for path in snakemake.input.timings],
        qualities=[Path(path) for path in snakemake.input.qualities],
        out=Path(snakemake.output.table),
        timing=Path(snakemake.output.timing),
        quality=Path(snakemake.output.quality),
    )
