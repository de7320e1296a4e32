"""Rule calibration_manifest: gather a model's calibration shards and their activation statistics."""

from pathlib import Path

from ditscope.calibrate.activation_table import gather_activations
from ditscope.calibrate.files import write_manifest
from ditscope.workflow.job import job

with job(snakemake):
    shards = [Path(shard) for shard in snakemake.input.shards]
    write_manifest(shards, Path(snakemake.output.manifest))
    gather_activations(shards, Path(snakemake.output.activations))
