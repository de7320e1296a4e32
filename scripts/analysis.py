"""Rule analysis: one analysis of the user's own."""

from pathlib import Path

from ditscope.analyse.settings import Analysis
from ditscope.analyse.stage import run_analysis
from ditscope.core.settings import decode
from ditscope.workflow.job import job

with job(snakemake):
    run_analysis(
        name=snakemake.wildcards.analysis,
        analysis=decode(Analysis, snakemake.params.analysis),
        files={stage: [Path(path) for path in paths] for stage, paths in snakemake.params.stages.items()},
        out=Path(snakemake.output.table),
    )
