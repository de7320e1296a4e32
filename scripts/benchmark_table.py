"""Rule benchmark_table: all runs in one table of sizes and quality, one of latency and memory, and a recommendation."""

from pathlib import Path

from ditscope.benchmark.join import benchmark_table
from ditscope.benchmark.settings import Benchmark
from ditscope.core.settings import decode
from ditscope.workflow.job import job

with job(snakemake):
    tables = {
        name: [Path(path) for path in (*snakemake.input.get(name, ()), *elsewhere)]
        for name, elsewhere in snakemake.params.elsewhere.items()
    }
    benchmark_table(
        **tables,
        output_dir=Path(snakemake.output.table).parent,
        settings=decode(Benchmark, snakemake.params.settings),
    )
