"""Rule download_model: one hub repository at a pinned revision, safetensors and configs only."""

from pathlib import Path

from ditscope.job import job

with job(snakemake):
    from huggingface_hub import snapshot_download

    snapshot_download(
        snakemake.wildcards.hub_id.replace("--", "/"),
        revision=snakemake.wildcards.revision,
        local_dir=Path(snakemake.output.index).parent,
        allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"],
    )
