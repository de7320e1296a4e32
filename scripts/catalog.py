"""Rule catalog: every table of the study in one DuckDB file."""

from pathlib import Path

from ditscope.publish.catalog import write_catalog
from ditscope.workflow.job import job

with job(snakemake):
    write_catalog([Path(path) for path in snakemake.input], Path(snakemake.output.catalog))
