"""Rule timelines: the runs of each network on one sheet, and its first run as a strip."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.video.settings import Video
from ditscope.video.timeline import timelines
from ditscope.workflow.job import job

with job(snakemake):
    timelines(
        tables=[Path(path) for path in snakemake.input.tables],
        images=[Path(path) for path in snakemake.input.images],
        sheets=Path(snakemake.output.sheets),
        strips=Path(snakemake.output.strips),
        settings=decode(Video, snakemake.params.settings),
    )
