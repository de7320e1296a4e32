"""Rule cluster: clusters of the states of the trajectories."""

from pathlib import Path

from ditscope.cluster.settings import Cluster
from ditscope.cluster.stage import cluster
from ditscope.core.settings import decode
from ditscope.workflow.job import job

with job(snakemake):
    cluster(
        embeddings=[Path(path) for path in snakemake.input.embeddings],
        trajectories=[Path(path) for path in snakemake.input.trajectories],
        folder=Path(snakemake.output[0]).parent,
        settings=decode(Cluster, snakemake.params.settings),
        max_length=snakemake.params.max_length,
    )
