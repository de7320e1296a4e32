"""Rule catalog: every table of the study in one DuckDB file."""

from pathlib import Path

from ditscope.catalog import write_catalog
from ditscope.job import job

with job(snakemake):
    write_catalog([Path(path) for path in snakemake.input], Path(snakemake.output.catalog))
