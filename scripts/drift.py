"""Rule drift: how far the states of the trajectories are from their first one."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.drift.settings import Drift
from ditscope.drift.stage import drift
from ditscope.workflow.job import job

with job(snakemake):
    drift(
        embeddings=[Path(path) for path in snakemake.input.embeddings],
        trajectories=[Path(path) for path in snakemake.input.trajectories],
        folder=Path(snakemake.output[0]).parent,
        settings=decode(Drift, snakemake.params.settings),
        max_length=snakemake.params.max_length,
        images=[Path(path) for path in snakemake.input.images],
    )
