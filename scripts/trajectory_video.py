"""Rule trajectory_video: all trajectories in one film."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.video.mosaic import trajectory_video
from ditscope.video.settings import Video
from ditscope.workflow.job import job

with job(snakemake):
    trajectory_video(
        tables=[Path(path) for path in snakemake.input.tables],
        images=[Path(path) for path in snakemake.input.images],
        out=Path(snakemake.output.video),
        page=Path(snakemake.output.page),
        jumps=next((Path(path) for path in snakemake.input.jumps), None),
        settings=decode(Video, snakemake.params.settings),
    )
