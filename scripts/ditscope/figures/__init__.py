"""Figures of the paper and the report: one pure drawing function each, registered under the figure's file name.

A figure needs the results of some stages, given as lists of paths by stage, and returns itself with the table that
it draws. Adding one: write the function in the module of its topic, decorate it, add report/<name>.rst.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure as Canvas

Files = dict[str, list[Path]]


@dataclass(frozen=True)
class Figure:
    """A registered figure: the stages it needs, its place in the report, and the function that draws it."""

    name: str
    stages: tuple[str, ...]
    category: str
    module: str
    function: str


# name: (stages it needs, category in the report, module of ditscope.figures, function)
FIGURES = {
    figure.name: figure
    for figure in (
        Figure("image-grid", ("generate",), "Images", "images", "image_grid"),
    )
}


def available(stages: set[str]) -> list[Figure]:
    """The figures whose stages are all among `stages`, in order."""
    return [figure for figure in FIGURES.values() if set(figure.stages) <= stages]


def draw(figure: Figure, files: Files) -> "tuple[Canvas, pl.DataFrame]":
    """Draw one figure from the files of its stages; returns it with its data."""
    from importlib import import_module

    function: Callable[..., tuple[Canvas, pl.DataFrame]] = getattr(
        import_module(f"ditscope.figures.{figure.module}"), figure.function
    )
    return function({stage: files[stage] for stage in figure.stages})
