"""Rule block_analysis: what the blocks of one capture set do."""

from pathlib import Path

from ditscope.config import decode
from ditscope.job import job
from ditscope.settings import Blocks, Embedder

with job(snakemake):
    from ditscope.blocks import blocks

    entries = {
        name: {key: value for key, value in entry.items() if key != "digest"}
        for name, entry in snakemake.params.embedders.items()
    }
    blocks(
        captures=Path(snakemake.input.captures),
        out=Path(snakemake.output[0]).parent,
        embedders={name: decode(Embedder, entry) for name, entry in entries.items()},
        settings=decode(Blocks, snakemake.params.settings),
    )
