"""Rule refine_diagnose: diagnostics, record and pictures of one refiner."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.refine.settings import Refine
from ditscope.workflow.job import job

with job(snakemake, warm=True):
    from ditscope.refine.diagnose import diagnose

    files = [*snakemake.input.items(), *snakemake.output.items()]
    diagnose(
        name=snakemake.wildcards.refiner,
        settings=decode(Refine, snakemake.params.settings),
        **{name: Path(path) for name, path in files if name not in ("data", "weights")},
    )
