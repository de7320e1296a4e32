"""Rule refine_codebook: the pseudo-classes of one model's latents."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.refine.codebook import build_codebook
from ditscope.refine.settings import Refine
from ditscope.workflow.job import job

with job(snakemake):
    build_codebook(
        images=[Path(path) for path in snakemake.input.images],
        codebook=Path(snakemake.output.codebook),
        assignments=Path(snakemake.output.assignments),
        settings=decode(Refine, snakemake.params.settings),
    )
