"""Rule figures: every figure of the study."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.publish.draw import draw_figures
from ditscope.publish.settings import Publish
from ditscope.workflow.job import job

if __name__ == "__main__":  # the processes that it shares the figures out among import this file
    with job(snakemake):
        draw_figures(
            names=snakemake.params.names,
            files={stage: [Path(path) for path in paths] for stage, paths in snakemake.params.stages.items()},
            out=Path(snakemake.output[0]).parent,
            settings=decode(Publish, snakemake.params.settings),
            own=snakemake.params.own,
            processes=snakemake.threads,
        )
