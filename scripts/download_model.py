"""Rule download_model: one hub repository at a pinned revision, safetensors and configs only."""

from pathlib import Path

from ditscope.workflow.job import job

with job(snakemake):
    from ditscope.workflow.download import fetch

    index = Path(snakemake.output.index)
    fetch(snakemake.wildcards.hub_id.replace("--", "/"), snakemake.wildcards.revision, index.parent, index.name)
