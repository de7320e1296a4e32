"""Rule topology: persistent homology of the trajectories."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.topology.settings import Topology
from ditscope.topology.stage import topology
from ditscope.workflow.job import job

with job(snakemake):
    topology(
        embeddings=[Path(path) for path in snakemake.input.embeddings],
        trajectories=[Path(path) for path in snakemake.input.trajectories],
        folder=Path(snakemake.output[0]).parent,
        settings=decode(Topology, snakemake.params.settings),
    )
