"""Rule ablation: one model with each of its blocks left out in turn."""

from pathlib import Path

from ditscope.ablate.settings import Ablate
from ditscope.core.settings import decode
from ditscope.workflow.job import embedder_entry, job, model_entry, partial_root

with job(snakemake, warm=True):
    from ditscope.ablate.stage import ablate

    ablate(
        name=snakemake.wildcards.model,
        model=model_entry(snakemake.params.model),
        prompts=[Path(snakemake.input.prompts)],
        out=Path(snakemake.output.table),
        embedders={name: embedder_entry(entry) for name, entry in snakemake.params.embedders.items()},
        images=Path(snakemake.output.images),
        settings=decode(Ablate, snakemake.params.settings),
        partial=partial_root(snakemake),
    )
