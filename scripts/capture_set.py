"""Rule capture_set: the captured runs of one model under one capture set."""

from pathlib import Path

from ditscope.capture.settings import CaptureSet
from ditscope.core.settings import decode
from ditscope.workflow.job import job, model_entry, partial_root

with job(snakemake, warm=True):
    from ditscope.capture.stage import capture

    capture(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        output_dir=Path(snakemake.output.captures),
        prompts=[Path(snakemake.input.prompts)],
        settings=decode(CaptureSet, snakemake.params.settings),
        partial=partial_root(snakemake),
    )
