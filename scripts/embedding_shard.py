"""Rule embedding_shard: one shard of a network's trajectories under one embedder."""

from pathlib import Path

from ditscope.config import decode
from ditscope.job import job
from ditscope.settings import Embed, Embedder

with job(snakemake):
    from ditscope.embed import embed

    entry = {key: value for key, value in snakemake.params.embedder.items() if key != "digest"}
    embed(
        name=snakemake.wildcards.embedder,
        embedder=decode(Embedder, entry),
        trajectories=Path(snakemake.input.table),
        images=Path(snakemake.input.images),
        out=Path(snakemake.output.table),
        settings=decode(Embed, snakemake.params.settings),
    )
