"""Rule drift: how far the states of the trajectories are from their first one."""

from pathlib import Path

from ditscope.config import decode
from ditscope.drift import drift
from ditscope.job import job
from ditscope.settings import Drift

with job(snakemake):
    drift(
        embeddings=[Path(path) for path in snakemake.input.embeddings],
        trajectories=[Path(path) for path in snakemake.input.trajectories],
        folder=Path(snakemake.output[0]).parent,
        settings=decode(Drift, snakemake.params.settings),
    )
