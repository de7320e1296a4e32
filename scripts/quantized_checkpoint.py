"""Rule quantized_checkpoint: a model's transformer under one scheme, as one safetensors file."""

from pathlib import Path

from ditscope.config import decode
from ditscope.job import job, model_entry
from ditscope.settings import Scheme

with job(snakemake, warm=True):
    from ditscope.checkpoints import quantize

    quantize(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        scheme=decode(Scheme, snakemake.params.scheme),
        out=Path(snakemake.output.checkpoint),
        plan=Path(snakemake.input.plan[0]) if snakemake.input.plan else None,
    )
