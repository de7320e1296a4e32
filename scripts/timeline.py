"""Rule timeline: a network's runs on one sheet, and its first run as a strip."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.video.settings import Video
from ditscope.video.timeline import timeline
from ditscope.workflow.job import job

with job(snakemake):
    timeline(
        tables=[Path(path) for path in snakemake.input.tables],
        images=[Path(path) for path in snakemake.input.images],
        out=Path(snakemake.output.sheet),
        strip=Path(snakemake.output.strip),
        settings=decode(Video, snakemake.params.settings),
    )
