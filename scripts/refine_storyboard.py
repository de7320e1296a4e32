"""Rule refine_storyboard: pictures that a model made of prompts, completed by a refiner."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.refine.settings import Storyboard
from ditscope.workflow.job import job

with job(snakemake, warm=True):
    from ditscope.refine.storyboard import complete_storyboard

    complete_storyboard(
        refiner=Path(snakemake.input.refiner),
        images=[Path(path) for path in snakemake.input.images],
        manifests=[Path(path) for path in snakemake.input.manifests],
        folder=Path(snakemake.output.folder),
        page=Path(snakemake.output.page),
        storyboard=decode(Storyboard, snakemake.params.storyboard),
        film_format="gif" if snakemake.params.film == "gif" else "mp4",
    )
