"""Rule explorer: the interactive page over the study's tables."""

from pathlib import Path

from ditscope.publish.explorer import study_of, write_explorer
from ditscope.workflow.job import job

with job(snakemake):
    files, study = study_of(snakemake.params.study)
    write_explorer(files, Path(snakemake.output.page), study, snakemake.params.budget)
