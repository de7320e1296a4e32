"""Rule import_images: pictures that the user gives, as a shard of one model's images."""

from pathlib import Path

from ditscope.workflow.job import job, model_entry

with job(snakemake, warm=True):
    from ditscope.generate.source import import_images

    import_images(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        source=Path(snakemake.input.source),
        images=Path(snakemake.output.images),
        manifest=Path(snakemake.output.manifest),
        timing=Path(snakemake.output.timing),
    )
