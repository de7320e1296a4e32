"""Rule capture_video: the film of one capture set."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.video.settings import Video
from ditscope.video.stage import capture_video
from ditscope.workflow.job import job

with job(snakemake):
    capture_video(
        captures=Path(snakemake.input.captures),
        out=Path(snakemake.output.video),
        denoising=Path(snakemake.output.denoising),
        sheets=Path(snakemake.output.sheets),
        page=Path(snakemake.output.page),
        settings=decode(Video, snakemake.params.settings),
    )
