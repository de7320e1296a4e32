"""Rule refine_data: the samples that one refiner is trained on."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.refine.data_settings import Source
from ditscope.workflow.job import job, model_entry, partial_root

with job(snakemake, warm=True):
    from ditscope.refine.prepare import prepare

    prepare(
        models={name: model_entry(entry) for name, entry in snakemake.params.source["models"].items()},
        samples=Path(snakemake.output.samples),
        about=Path(snakemake.output.about),
        data=Path(snakemake.output.data),
        images=[Path(path) for path in snakemake.input.images],
        source=decode(Source, snakemake.params.source["source"]),
        partial=partial_root(snakemake),
    )
