"""Draw the registered figures: each function takes the files of its stages and gives the figure with its data."""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.publish.figures import FIGURES
from ditscope.publish.settings import Publish
from ditscope.style import Files, save

log = logging.getLogger(__name__)


def function_of(name: str) -> Callable[[Files], tuple[Canvas, pl.DataFrame]]:
    """The function of a figure: `block_grid` in `capture/figures.py` for `block-grid`, whose first stage is capture."""
    return getattr(import_module(f"ditscope.{FIGURES[name].stages[0]}.figures"), name.replace("-", "_"))


def draw_figures(names: list[str], files: Files, out: Path, settings: Publish = Publish()) -> None:
    """Draw the named figures into `out`: each in every format, with its data as CSV."""
    for name in names:
        figure, data = function_of(name)({stage: files[stage] for stage in FIGURES[name].stages})
        save(figure, data, out / name, settings.formats, settings.dpi)
        log.info("drew %s (%d rows)", name, len(data))
