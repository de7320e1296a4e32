"""Rule benchmark_quality: the images of every scheme of one model against those of the base."""

from pathlib import Path

from ditscope.benchmark.settings import Benchmark
from ditscope.core.settings import decode
from ditscope.workflow.job import embedder_entry, job

with job(snakemake, warm=True):
    from ditscope.benchmark.quality import quality

    quality(
        runs=[Path(path) for path in snakemake.input.runs],
        out=Path(snakemake.output.quality),
        embedders={name: embedder_entry(entry) for name, entry in snakemake.params.embedders.items()},
        settings=decode(Benchmark, snakemake.params.settings),
        cache=Path("resources/.cache/features"),
    )
