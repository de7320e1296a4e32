"""Rule embedding_shard: one shard of a network's trajectories under one embedder."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.embed.settings import Embed
from ditscope.workflow.job import embedder_entry, job

with job(snakemake, warm=True):
    from ditscope.embed.stage import embed

    embed(
        name=snakemake.wildcards.embedder,
        embedder=embedder_entry(snakemake.params.embedder),
        trajectories=Path(snakemake.input.table),
        images=Path(snakemake.input.images),
        out=Path(snakemake.output.table),
        settings=decode(Embed, snakemake.params.settings),
    )
