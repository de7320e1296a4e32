"""Draw the registered figures: each function takes the files of its stages and gives the figure with its data."""

import logging
from collections.abc import Callable
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.figures import FIGURES, Files, images
from ditscope.figures.style import save
from ditscope.settings import Publish

log = logging.getLogger(__name__)

FUNCTIONS: dict[str, Callable[[Files], tuple[Canvas, pl.DataFrame]]] = {
    "image-grid": images.image_grid,
}


def draw_figures(names: list[str], files: Files, out: Path, settings: Publish = Publish()) -> None:
    """Draw the named figures into `out`: each in every format, with its data as CSV."""
    for name in names:
        figure, data = FUNCTIONS[name]({stage: files[stage] for stage in FIGURES[name].stages})
        save(figure, data, out / name, settings.formats, settings.dpi)
        log.info("drew %s (%d rows)", name, len(data))
