"""Rule benchmark_run: one model under one scheme and compile state, timed, weighed and sampled."""

from dataclasses import replace
from pathlib import Path

from ditscope.benchmark.settings import Benchmark
from ditscope.core.errors import InputError
from ditscope.core.settings import decode
from ditscope.models.hardware import hardware_id
from ditscope.workflow.job import job, model_entry, scheme_entry

with job(snakemake, warm=True):
    from ditscope.benchmark.run import case_of, measure, wanted_runs

    wildcards, params = snakemake.wildcards, snakemake.params
    if params.auto_hardware and hardware_id() != wildcards.hardware:
        raise InputError(
            f"benchmark.hardware: auto named this study's host `{wildcards.hardware}`, but the job runs on "
            f"`{hardware_id()}`; set benchmark.hardware to a name of your own"
        )
    settings = replace(decode(Benchmark, params.settings), hardware=wildcards.hardware)
    case = case_of(
        name=wildcards.model,
        model=model_entry(params.model),
        schemes={wildcards.scheme: scheme_entry(params.scheme)},
        config=wildcards.scheme,
        compile=wildcards.compile,
        plan=Path(snakemake.input.plan[0]) if snakemake.input.plan else None,
        settings=settings,
    )
    runs = wanted_runs([Path(path) for path in snakemake.input.prompts], settings)
    measure(case, runs, Path(snakemake.output.table).parent)
