"""Rule calibration_shard: the calibration samples and reference images of one shard."""

from pathlib import Path

from ditscope.calibrate.settings import Calibrate
from ditscope.core.settings import decode
from ditscope.workflow.job import job, model_entry, partial_root

with job(snakemake, warm=True):
    from ditscope.calibrate.stage import calibrate_shard

    calibrate_shard(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        images=snakemake.params.images,
        out=Path(snakemake.output.shard),
        settings=decode(Calibrate, snakemake.params.settings),
        partial=partial_root(snakemake),
    )
