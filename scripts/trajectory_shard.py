"""Rule trajectory_shard: one shard of runs around one network."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.models.settings import Scheme
from ditscope.trajectories.settings import Trajectories
from ditscope.workflow.job import job, model_entry, partial_root

with job(snakemake, warm=True):
    from ditscope.trajectories.stage import trajectories

    network = snakemake.params.network
    trajectories(
        network=snakemake.wildcards.network,
        entries=network["entries"],
        models={name: model_entry(entry) for name, entry in network["models"].items()},
        schemes={name: decode(Scheme, entry) for name, entry in network["schemes"].items()},
        prompt_tables=[Path(snakemake.input.prompts)],
        table=Path(snakemake.output.table),
        images=Path(snakemake.output.images),
        timing=Path(snakemake.output.timing),
        plans=Path(snakemake.params.plans),
        settings=decode(Trajectories, snakemake.params.settings),
        partial=partial_root(snakemake),
    )
