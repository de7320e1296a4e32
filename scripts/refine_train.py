"""Rule refine_train: the latent masked autoencoder and the refiner of one model."""

from pathlib import Path

from ditscope.config import decode
from ditscope.job import job, partial_root
from ditscope.settings import Refine

with job(snakemake):
    from ditscope.refine.train import train

    train(
        images=[Path(path) for path in snakemake.input.images],
        assignments=Path(snakemake.input.assignments),
        latent_mae=Path(snakemake.output.latent_mae),
        refiner=Path(snakemake.output.refiner),
        training=Path(snakemake.output.training),
        timing=Path(snakemake.output.timing),
        settings=decode(Refine, snakemake.params.settings),
        partial=partial_root(snakemake),
    )
