"""Rule quantized_checkpoint: a model's transformer under one scheme, as one safetensors file."""

from pathlib import Path

from ditscope.workflow.job import job, model_entry, scheme_entry

with job(snakemake, warm=True):
    from ditscope.benchmark.checkpoints import quantize

    quantize(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        scheme=scheme_entry(snakemake.params.scheme),
        out=Path(snakemake.output.checkpoint),
        plan=Path(snakemake.input.plan[0]) if snakemake.input.plan else None,
    )
