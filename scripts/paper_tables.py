"""Rule paper_tables: the summary tables of the study."""

from pathlib import Path

from ditscope.publish.paper_tables import write_paper_tables
from ditscope.workflow.job import job

with job(snakemake):
    write_paper_tables(
        {stage: [Path(path) for path in paths] for stage, paths in snakemake.params.stages.items()},
        Path(snakemake.output[0]).parent,
    )
