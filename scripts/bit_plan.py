"""Rule bit_plan: bits or formats for every layer of a model under one budget."""

from pathlib import Path

from ditscope.core.settings import decode
from ditscope.plan.settings import Budget, Plan
from ditscope.plan.stage import plan
from ditscope.workflow.job import job, scheme_entry

with job(snakemake):
    plan(
        model=snakemake.wildcards.model,
        sensitivity=[Path(table) for table in snakemake.input.sensitivity],
        out=Path(snakemake.output.plan),
        budget=decode(Budget, snakemake.params.budget),
        settings=decode(Plan, snakemake.params.settings),
        budget_name=snakemake.wildcards.budget,
        schemes={name: scheme_entry(entry) for name, entry in snakemake.params.formats.items()},
        timing=[Path(table) for table in snakemake.input.timing],
    )
