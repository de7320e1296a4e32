"""Rule image_shard: the images of one prompt shard."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.generate.settings import Generate
from ditscope.workflow.job import job, model_entry, partial_root

with job(snakemake, warm=True):
    from ditscope.generate.stage import generate

    generate(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        prompts=Path(snakemake.input.prompts),
        images=Path(snakemake.output.images),
        manifest=Path(snakemake.output.manifest),
        timing=Path(snakemake.output.timing),
        settings=decode(Generate, snakemake.params.settings),
        partial=partial_root(snakemake),
    )
