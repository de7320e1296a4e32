"""Rule refine_diagnose: what a refiner is worth on held-out samples, its record and pictures."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.refine.settings import Refine
from ditscope.workflow.job import embedder_entry, job, model_entry

with job(snakemake, warm=True):
    from ditscope.refine.diagnose import diagnose

    files = [*snakemake.input.items(), *snakemake.output.items()]
    other = ("data", "codebook", "weights", "embedder", "encoder")
    diagnose(
        name=snakemake.wildcards.refiner,
        models={name: model_entry(entry) for name, entry in snakemake.params.models.items()},
        embedders={name: embedder_entry(entry) for name, entry in snakemake.params.embedders.items()},
        settings=decode(Refine, snakemake.params.settings),
        **{name: Path(path) for name, path in files if name not in other},
    )
