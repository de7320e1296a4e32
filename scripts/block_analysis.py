"""Rule block_analysis: what the blocks of one capture set do."""

from pathlib import Path

from ditscope.blocks.settings import Blocks
from ditscope.core.settings import decode
from ditscope.workflow.job import embedder_entry, job

with job(snakemake, warm=True):
    from ditscope.blocks.stage import blocks

    blocks(
        captures=Path(snakemake.input.captures),
        out=Path(snakemake.output[0]).parent,
        embedders={name: embedder_entry(entry) for name, entry in snakemake.params.embedders.items()},
        settings=decode(Blocks, snakemake.params.settings),
    )
