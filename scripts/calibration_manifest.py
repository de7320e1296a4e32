"""Rule calibration_manifest: gather a model's calibration shards."""

from pathlib import Path

from ditscope.calibration_set import write_manifest
from ditscope.job import job

with job(snakemake):
    write_manifest([Path(shard) for shard in snakemake.input.shards], Path(snakemake.output.manifest))
