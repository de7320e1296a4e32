"""Rule sensitivity_layers: the sensitivity of one group of a model's layers."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.sensitivity.settings import Sensitivity
from ditscope.workflow.job import job, model_entry, partial_root

with job(snakemake, warm=True):
    from ditscope.sensitivity.stage import sensitivity

    sensitivity(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        calibration=Path(snakemake.params.calibration),
        out=Path(snakemake.output.layers),
        settings=decode(Sensitivity, snakemake.params.settings),
        group=int(snakemake.wildcards.group),
        groups=snakemake.params.groups,
        fast=Path(snakemake.output.fast),
        partial=partial_root(snakemake),
    )
