"""Rule prompt_slice: some consecutive runs of the prompt CSV."""

from ditscope.core.settings import decode
from ditscope.prompts.settings import Prompts
from ditscope.prompts.stage import write_slice
from ditscope.workflow.job import job

with job(snakemake):
    start, count = snakemake.wildcards.slice.split("-")
    write_slice(
        csv=snakemake.input.csv,
        start=int(start),
        count=int(count),
        out=snakemake.output.runs,
        settings=decode(Prompts, snakemake.params.settings),
        experiment=snakemake.params.experiment,
    )
