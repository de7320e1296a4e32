"""Rule trajectory_shard: one shard of runs around one network."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.trajectories.settings import Trajectories
from ditscope.workflow.job import job, model_entry, partial_root, scheme_entry

with job(snakemake, warm=True):
    from ditscope.trajectories.stage import trajectories

    network = snakemake.params.network
    trajectories(
        network=snakemake.wildcards.network,
        entries=network["entries"],
        models={name: model_entry(entry) for name, entry in network["models"].items()},
        schemes={name: scheme_entry(entry) for name, entry in network["schemes"].items()},
        prompt_tables=[Path(snakemake.input.prompts)],
        table=Path(snakemake.output.table),
        images=Path(snakemake.output.images),
        timing=Path(snakemake.output.timing),
        plans=Path(snakemake.params.plans),
        settings=decode(Trajectories, snakemake.params.settings),
        partial=partial_root(snakemake),
    )
