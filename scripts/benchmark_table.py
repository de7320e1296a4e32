"""Rule benchmark_table: all runs in one table of sizes and quality, one of latency and memory, and a recommendation."""

from pathlib import Path

from ditscope.benchmark_table import benchmark_table
from ditscope.config import decode
from ditscope.job import job
from ditscope.settings import Benchmark

with job(snakemake):
    benchmark_table(
        runs=[Path(path) for path in snakemake.input.runs],
        timings=[Path(path) for path in snakemake.input.timings],
        qualities=[Path(path) for path in snakemake.input.qualities],
        flat_fields=[Path(path) for path in snakemake.input.flat_fields],
        output_dir=Path(snakemake.output.table).parent,
        settings=decode(Benchmark, snakemake.params.settings),
    )
