"""Heat maps of what is known of every layer of a model: grouped by kind and block, or layer by layer on pages."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure
from matplotlib.ticker import LogLocator

from ditscope.style import SMALL, chunks, note, page_width, plain, sized

OUTSIDE = "outside the blocks"
ROW, HEAD, FOOT = 0.115, 0.55, 0.75  # inches of a row that is named, of what is above the maps, and below
PAGE_ROWS = 70  # layers on a page of the full list
LETTER, TICK, NAMES = 0.052, 0.45, 0.35  # inches of a small letter, of a number with its gap, of what is beside names
GROUP_ROWS = 40  # rows of a map of groups that are all named
COLOURS = matplotlib.colormaps["magma_r"].with_extremes(bad="#dddddd")  # zero has no place on a logarithmic scale


@dataclass(frozen=True)
class Panel:
    """A column of maps: its title, a table of `layer`, `kind`, `x`, `value`, and the scale of its colours."""

    title: str
    table: pl.DataFrame
    norm: Normalize
    label: str


def block_of(layer: str) -> str:
    """The block that a layer is in, by its dotted name: what stands before the first number, and the number."""
    parts = layer.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return OUTSIDE if number is None else f"{'.'.join(parts[:number])} {parts[number]}"


def part_of(layer: str) -> str:
    """What a layer is called in its block; outside the blocks, its whole name."""
    parts = layer.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[number + 1 :])


def grouped(models: Mapping[str, Sequence[Panel]], xlabel: str) -> Canvas:
    """Per model a page: the largest value of the layers of each kind (above) and of each block (below), by `x`."""
    return pages([(title, panels, ("kind", "block")) for title, panels in models.items()], xlabel)


def layer_by_layer(models: Mapping[str, Sequence[Panel]], xlabel: str) -> Canvas:
    """Every layer under its name, in network order; a model takes as many pages as its layers stay legible on."""
    parts = []
    for title, panels in models.items():
        of_pages = chunks(panels[0].table["layer"].unique(maintain_order=True).to_list(), PAGE_ROWS)
        for number, layers in enumerate(of_pages, 1):
            shown = [Panel(p.title, p.table.filter(pl.col("layer").is_in(layers)), p.norm, p.label) for p in panels]
            told = f"{title} (page {number} of {len(of_pages)})" if len(of_pages) > 1 else title
            parts.append((told, shown, ("layer",)))
    return pages(parts, xlabel)


def pages(parts: Sequence[tuple[str, Sequence[Panel], tuple[str, ...]]], xlabel: str) -> Canvas:
    """A figure of pages: each with a title, a column of maps per panel, a row of maps per grouping."""
    if not parts:
        return note("No layer was measured.")
    counts = [[rows_of(panels[0].table, by) for by in groupings] for _, panels, groupings in parts]
    heights = [HEAD + FOOT + sum(0.3 + ROW * min(len(rows), PAGE_ROWS) for rows in of_page) for of_page in counts]
    figure = sized(page_width(), sum(heights))
    sheets = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for sheet, (title, panels, groupings), of_page in zip(sheets, parts, counts, strict=True):
        sheet.suptitle(title, fontsize=7)
        draw_page(sheet, panels, dict(zip(groupings, of_page, strict=True)), xlabel)
    return figure


def rows_of(table: pl.DataFrame, by: str) -> list[str]:
    """The rows of a map: layers, kinds or blocks, in network order, blocks without a number last."""
    rows = with_block(table)[by].unique(maintain_order=True).to_list()
    return [row for row in rows if row != OUTSIDE] + [row for row in rows if row == OUTSIDE]


def with_block(table: pl.DataFrame) -> pl.DataFrame:
    """The table with the column `block`."""
    return table.with_columns(pl.col("layer").map_elements(block_of, pl.String).alias("block"))


def draw_page(sheet: SubFigure, panels: Sequence[Panel], rows: Mapping[str, list[str]], xlabel: str) -> None:
    """The maps of a page, with one scale of colours below those that share it."""
    ratios = [max(2, len(names)) for names in rows.values()]
    axes = sheet.subplots(len(rows), len(panels), squeeze=False, height_ratios=ratios, sharex="col")
    wide = page_width() - NAMES - LETTER * max(len(name) for names in rows.values() for name in names)
    for i, (by, names) in enumerate(rows.items()):
        for j, (axis, panel) in enumerate(zip(axes[i], panels, strict=True)):
            draw_map(axis, panel, by, names)
            axis.set_title(wrapped(panel.title, wide / len(panels)) if i == 0 else "", fontsize=6.5)
            if j:
                axis.tick_params(labelleft=False)
        if len(rows) > 1:
            axes[i, 0].set_ylabel(f"by {by}")
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    scales: dict[int, tuple[Panel, list[Axes]]] = {id(panel.norm): (panel, []) for panel in panels}
    for panel, column in zip(panels, axes.T, strict=True):
        scales[id(panel.norm)][1].extend(column)
    for panel, column in scales.values():
        bar = sheet.colorbar(column[0].images[0], ax=column, location="bottom", aspect=45, pad=0.02)
        bar.set_label(wrapped(panel.label, wide / len(scales)), fontsize=6.5)
        bar.ax.tick_params(labelsize=SMALL)
        plain(bar.ax.xaxis)
        if isinstance(decades := bar.ax.xaxis.get_major_locator(), LogLocator):
            decades.set_params(numticks=max(2, int(wide / len(scales) / TICK)))


def wrapped(text: str, inches: float) -> str:
    """A text in lines that are about so many inches long, and not much shorter than its words."""
    return textwrap.fill(text, max(8, int(inches / LETTER)), break_long_words=False)


def draw_map(axis: Axes, panel: Panel, by: str, names: list[str]) -> None:
    """The largest value of each row at each `x`."""
    table = with_block(panel.table)
    steps = table["x"].unique().sort().to_list()
    cells = np.full((len(names), len(steps)), np.nan)
    for name, x, value in table.group_by(by, "x").agg(pl.col("value").max()).rows():
        cells[names.index(name), steps.index(x)] = value
    axis.imshow(cells, aspect="auto", norm=panel.norm, cmap=COLOURS, interpolation="nearest")
    every = 1 if by == "layer" else -(-len(names) // GROUP_ROWS)
    axis.set_yticks(range(0, len(names), every), names[::every], fontsize=SMALL, parse_math=False)
    every = -(-len(steps) // 10)
    axis.set_xticks(range(0, len(steps), every), steps[::every], fontsize=SMALL)
