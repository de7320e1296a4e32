"""Rule download_model: one hub repository at a pinned revision, safetensors and configs only."""

from pathlib import Path

from ditscope.workflow.job import job

with job(snakemake):
    from ditscope.workflow.download import code_revisions, fetch, fetch_code

    index = Path(snakemake.output.index)
    source, revision = snakemake.wildcards.hub_id.replace("--", "/"), snakemake.wildcards.revision
    fetch_code(code_revisions(snakemake.config, source, revision))
    fetch(source, revision, index.parent, index.name)
