"""Rule cluster: clusters of the states of the trajectories."""

from pathlib import Path

from ditscope.cluster import cluster
from ditscope.config import decode
from ditscope.job import job
from ditscope.settings import Cluster

with job(snakemake):
    cluster(
        embeddings=[Path(path) for path in snakemake.input.embeddings],
        trajectories=[Path(path) for path in snakemake.input.trajectories],
        folder=Path(snakemake.output[0]).parent,
        settings=decode(Cluster, snakemake.params.settings),
    )
