"""Rule refine_train: the latent masked autoencoder and the refiner of one data set; several GPUs share each step."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.refine.settings import Refine
from ditscope.workflow.job import job, partial_root
from ditscope.workflow.launch import torchrun

with job(snakemake, warm=True) as gpus:
    arguments = {
        **{name: Path(snakemake.input[name]) for name in ("samples", "about", "codebook", "assignments")},
        "latent_mae": Path(snakemake.output.latent_mae),
        "refiner": Path(snakemake.output.refiner),
        "training": Path(snakemake.output.training),
        "timing": Path(snakemake.output.timing),
        "start": str(snakemake.input.get("start", "")),
        "settings": decode(Refine, snakemake.params.settings),
        "partial": partial_root(snakemake),
    }
    if len(gpus) > 1:
        torchrun("refine-train", len(gpus), **arguments)
    else:
        from ditscope.refine.train import train

        train(**arguments)
