"""Rule explorer: the interactive page over the study's tables."""

from pathlib import Path

from ditscope.publish.explorer import write_explorer
from ditscope.workflow.job import job

with job(snakemake):
    write_explorer(
        {stage: [Path(path) for path in paths] for stage, paths in snakemake.params.stages.items()},
        Path(snakemake.output.page),
    )
