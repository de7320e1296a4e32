"""Rule import_captures: captures that the user gives, as a capture set of one model."""

from pathlib import Path

from ditscope.workflow.job import job, model_entry

with job(snakemake, warm=True):
    from ditscope.capture.source import import_captures

    import_captures(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        source=Path(snakemake.input.source),
        out=Path(snakemake.output.captures),
    )
