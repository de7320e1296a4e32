"""Rule benchmark_quality: the images of every scheme of one model against those of the base."""

from pathlib import Path

from ditscope.config import decode
from ditscope.job import job
from ditscope.quality import quality
from ditscope.settings import Benchmark, Embedder

with job(snakemake):
    features = snakemake.params.features
    entry = {key: value for key, value in snakemake.params.embedder.items() if key != "digest"}
    quality(
        runs=[Path(path) for path in snakemake.input.runs],
        out=Path(snakemake.output.quality),
        embedders={features: decode(Embedder, entry)},
        settings=Benchmark(features=features),
        cache=Path("resources/.cache/features"),
    )
