"""Rule refine_codebook: the pseudo-classes of one refiner's samples."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.refine.codebook import build_codebook
from ditscope.refine.settings import Refine
from ditscope.workflow.job import job

with job(snakemake):
    build_codebook(
        samples=Path(snakemake.input.samples),
        about=Path(snakemake.input.about),
        codebook=Path(snakemake.output.codebook),
        assignments=Path(snakemake.output.assignments),
        start=str(snakemake.input.get("start", "")),
        settings=decode(Refine, snakemake.params.settings),
    )
