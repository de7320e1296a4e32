"""Draw the registered figures: each function takes the files of its stages and gives the figure with its data."""

import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.errors import InputError
from ditscope.core.plugins import load_plugin
from ditscope.core.tables import read_table
from ditscope.publish.figures import FIGURES
from ditscope.publish.settings import Publish
from ditscope.style import Files, named, save

log = logging.getLogger(__name__)

NO_ANALYSES: Mapping[str, str] = MappingProxyType({})


def function_of(name: str) -> Callable[[Files], tuple[Canvas, pl.DataFrame]]:
    """The function of a figure: `block_grid` in `capture/figures.py` for `block-grid`, whose first stage is capture."""
    return getattr(import_module(f"ditscope.{FIGURES[name].source}"), name.replace("-", "_"))


def draw_figures(
    names: list[str], files: Files, out: Path, settings: Publish = Publish(), own: Mapping[str, str] = NO_ANALYSES
) -> None:
    """Draw the named figures into `out`: each in every format, with its data as CSV.

    `own` are modules of analyses of the user's own, by name: `figure` draws the table that the analysis left.
    """
    for name in names:
        if name in own:
            figure, data = draw_own(name, own[name], files)
        else:
            figure, data = function_of(name)({stage: files[stage] for stage in FIGURES[name].stages})
        save(figure, data, out / name, settings.formats, settings.dpi)
        log.info("drew %s (%d rows)", name, len(data))


def draw_own(name: str, module: str, files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The figure of an analysis of the user's own, and the table that it draws."""
    (path,) = named(files, "analyse", f"{name}.parquet")
    table = read_table(path, f"analysis.{name}")
    figure = load_plugin(module, {}, f"analyse.analyses.{name}.module", "an analysis").figure(table)
    if not isinstance(figure, Canvas):
        raise InputError(
            f"analyse.analyses.{name}: `figure` of `{module}` returns a {type(figure).__name__}, no Figure"
        )
    return figure, table
