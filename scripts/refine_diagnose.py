"""Rule refine_diagnose: diagnostics, record and pictures of one model's refiner."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.refine.settings import Refine
from ditscope.workflow.job import job, model_entry

with job(snakemake, warm=True):
    from ditscope.refine.diagnose import diagnose

    files = [*snakemake.input.items(), *snakemake.output.items()]
    diagnose(
        name=snakemake.params.name,
        model=model_entry(snakemake.params.model),
        images=[Path(path) for path in snakemake.input.images],
        settings=decode(Refine, snakemake.params.settings),
        **{name: Path(path) for name, path in files if name not in ("images", "weights")},
    )
