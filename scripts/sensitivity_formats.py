"""Rule sensitivity_formats: every layer of a model in every format that a budget names."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.sensitivity.settings import Sensitivity
from ditscope.workflow.job import job, model_entry, scheme_entry

with job(snakemake, warm=True):
    from ditscope.sensitivity.formats import sensitivity_formats

    sensitivity_formats(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        calibration=Path(snakemake.params.calibration),
        out=Path(snakemake.output.formats),
        schemes={name: scheme_entry(entry) for name, entry in snakemake.params.formats.items()},
        formats=list(snakemake.params.formats),
        settings=decode(Sensitivity, snakemake.params.settings),
        timing=Path(snakemake.output.timing),
    )
