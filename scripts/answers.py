"""Rule answers: what each stage answers."""

from pathlib import Path

from ditscope.publish.answers import write_answers
from ditscope.workflow.job import job

with job(snakemake):
    write_answers(
        {stage: [Path(path) for path in paths] for stage, paths in snakemake.params.stages.items()},
        Path(snakemake.output.table),
        snakemake.params.controls,
    )
