"""Rule download_model: one hub repository at a pinned revision, safetensors and configs only."""

from pathlib import Path

from ditscope.job import job

with job(snakemake):
    from huggingface_hub import snapshot_download

    # A pipeline's weights lie in its components' folders; single files beside them would double the download.
    weights = "*/*.safetensors" if snakemake.wildcards.index == "model_index.json" else "*.safetensors"
    snapshot_download(
        snakemake.wildcards.hub_id.replace("--", "/"),
        revision=snakemake.wildcards.revision,
        local_dir=Path(snakemake.output.index).parent,
        allow_patterns=[weights, "*.json", "*.txt", "*.model"],
        ignore_patterns=["*.fp16.*"],  # the same weights once more; `dtype` casts them when they are loaded
    )
