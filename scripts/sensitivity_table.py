"""Rule sensitivity_table: one table of all models and layer groups."""

from pathlib import Path

from ditscope.sensitivity.scores import gather
from ditscope.workflow.job import job

with job(snakemake):
    gather(
        [Path(table) for table in snakemake.input.layers],
        Path(snakemake.output.table),
        [Path(table) for table in snakemake.input.fast],
        Path(snakemake.output.agreement),
    )
