"""Rule topology: persistent homology of the trajectories."""

from pathlib import Path

from ditscope.config import decode
from ditscope.job import job
from ditscope.settings import Topology
from ditscope.topology import topology

with job(snakemake):
    topology(
        embeddings=[Path(path) for path in snakemake.input.embeddings],
        trajectories=[Path(path) for path in snakemake.input.trajectories],
        folder=Path(snakemake.output[0]).parent,
        settings=decode(Topology, snakemake.params.settings),
    )
