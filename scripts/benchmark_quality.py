"""Rule benchmark_quality: the images of every scheme of one model against those of the base."""

from pathlib import Path

from ditscope.config import decode
from ditscope.job import job
from ditscope.settings import Benchmark, Embedder

with job(snakemake):
    from ditscope.quality import quality

    settings = decode(Benchmark, snakemake.params.settings)
    embedders = {
        name: decode(Embedder, {key: value for key, value in entry.items() if key != "digest"})
        for name, entry in snakemake.params.embedders.items()
    }
    quality(
        runs=[Path(path) for path in snakemake.input.runs],
        out=Path(snakemake.output.quality),
        embedders=embedders,
        settings=settings,
        cache=Path("resources/.cache/features"),
    )
