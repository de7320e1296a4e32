"""Rule ablation: one model with each of its blocks left out in turn."""

from pathlib import Path

from ditscope.config import decode
from ditscope.job import job, model_entry, partial_root
from ditscope.settings import Ablate, Embedder

with job(snakemake):
    from ditscope.ablate import ablate

    entries = {
        name: {key: value for key, value in entry.items() if key != "digest"}
        for name, entry in snakemake.params.embedders.items()
    }
    ablate(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        prompts=[Path(snakemake.input.prompts)],
        out=Path(snakemake.output.table),
        embedders={name: decode(Embedder, entry) for name, entry in entries.items()},
        images=Path(snakemake.output.images),
        settings=decode(Ablate, snakemake.params.settings),
        partial=partial_root(snakemake),
    )
