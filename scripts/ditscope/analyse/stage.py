"""Analyses of the user's own: a function from the files of stages to one table, named by its module's path."""

import inspect
import logging
from dataclasses import replace
from pathlib import Path

import polars as pl

from ditscope.analyse.settings import Analyse, Analysis
from ditscope.analyse.tables import ANALYSIS
from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.core.paths import InputFolder, OutputFile
from ditscope.core.plugins import load_plugin
from ditscope.core.settings import decode
from ditscope.core.study_plan import files_of_stage, read_plan
from ditscope.core.tables import write_table

log = logging.getLogger(__name__)


def analyse(results: InputFolder, name: str) -> None:
    """Run one analysis of a finished study, as its config has it; leaves analysis/<name>.parquet below `results`."""
    plan = read_plan(results)
    analyses = decode(Analyse, plan["config"].get("analyse", {}), "analyse").analyses
    if name not in analyses:
        raise InputError(unknown("name", name, analyses, "in the config's `analyse.analyses`"))
    left = {stage: list(map(Path, files_of_stage(plan, stage))) for stage in analyses[name].stages}
    run_analysis(name, analyses[name], left, results / "analysis" / f"{name}.parquet")


def run_analysis(name: str, analysis: Analysis, files: dict[str, list[Path]], out: OutputFile) -> None:
    """Call `analyse(files, **settings)` of an analysis' module and write its table as `analysis.<name>`.

    `files` has what each of the analysis' stages left. Raises InputError for a module without such a function, settings
    that it does not take, and a result that is no polars DataFrame.
    """
    where = f"analyse.analyses.{name}"
    function = getattr(load_plugin(analysis.module, {}, f"{where}.module", "an analysis"), "analyse", None)
    if not callable(function):
        raise InputError(f"{where}.module: `{analysis.module}` has no function `analyse`; define one")
    try:
        inspect.signature(function).bind(files, **analysis.settings)
    except TypeError as error:
        raise InputError(f"{where}.settings: `analyse` of `{analysis.module}`: {error}") from None
    table = function(files, **analysis.settings)
    if not isinstance(table, pl.DataFrame):
        raise InputError(
            f"{where}: `analyse` of `{analysis.module}` returns a {type(table).__name__}; return a polars DataFrame"
        )
    write_table(table, out, replace(ANALYSIS, name=f"analysis.{name}"))
    log.info("%s: %d rows", name, len(table))
