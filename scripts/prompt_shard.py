"""Rule prompt_shard: the runs of one shard of the prompt CSV."""

from ditscope.core.settings import decode
from ditscope.prompts.settings import Prompts
from ditscope.prompts.stage import write_shard
from ditscope.workflow.job import job

with job(snakemake):
    write_shard(
        csv=snakemake.input.csv,
        shard=int(snakemake.wildcards.shard),
        out=snakemake.output.shard,
        settings=decode(Prompts, snakemake.params.settings),
        experiment=snakemake.params.experiment,
    )
