"""Rule capture_set: the captured runs of one model under one capture set."""

from pathlib import Path

from ditscope.config import decode
from ditscope.job import job, model_entry, partial_root
from ditscope.settings import CaptureSet

with job(snakemake, warm=True):
    from ditscope.capture import capture

    capture(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        output_dir=Path(snakemake.output.captures),
        prompts=[Path(snakemake.input.prompts)],
        settings=decode(CaptureSet, snakemake.params.settings),
        partial=partial_root(snakemake),
    )
