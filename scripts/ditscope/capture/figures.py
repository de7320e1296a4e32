"""Figures of the stage `capture`."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.capture.files import DECODED, captures_in, decoded_file, intermediates_of, read_metadata
from ditscope.core.picture_file import pixels
from ditscope.style import Files, chunks, draw_tiles, note, page_width, sized

TILE = 0.3, 0.75  # inches of a picture, at least and at most
PAGE_INCHES = 8.5  # of the pictures on a page
BLOCK_GRID = {"generation_id": pl.String, "step": pl.Int64, "block": pl.String, "decoded": pl.Boolean}


def block_grid(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The first captured generation whose blocks are decoded: steps down, blocks across, every decode."""
    captures = [capture for folder in sorted(files["capture"]) for capture in captures_in(folder)]
    drawn = ((c, kind) for c in captures for kind in DECODED if (intermediates_of(c) / DECODED[kind]).is_dir())
    first = next(drawn, None)
    if first is None:
        return note("No capture set has decoded blocks."), pl.DataFrame(schema=BLOCK_GRID)
    generation, kind = first
    metadata = read_metadata(generation)
    steps, blocks = metadata["captured_steps"], metadata["captured_blocks"]
    paths = {(step, block): decoded_file(generation, kind, step, block) for step, block in product(steps, blocks)}
    figure = tiles_on_pages(
        [f"step {step}" for step in steps],
        [block.replace("_block_", " ") for block in blocks],
        lambda row, column: paths[steps[row], blocks[column]],
    )
    figure.suptitle(f"{generation.name}: one generation, {len(steps)} steps, {len(blocks)} blocks", fontsize=7)
    records = [(generation.name, step, block, paths[step, block].exists()) for step in steps for block in blocks]
    return figure, pl.DataFrame(records, schema=BLOCK_GRID, orient="row")


def tiles_on_pages(rows: list[str], columns: list[str], path_of: Callable[[int, int], Path]) -> Canvas:
    """Pictures by row and column, in bands that are as wide as a page, one below the other: a page of a PDF each.

    Tiles are as large as lets all of them stand on one page, within TILE; of what is more there are several pages.
    """
    width, height = page_width() - 0.6, PAGE_INCHES
    inches = float(np.clip(np.sqrt(width * height / (len(rows) * len(columns))) * 0.85, *TILE))
    bands = [
        (r, c)
        for c in chunks(list(range(len(columns))), int(width / inches))
        for r in chunks(list(range(len(rows))), int(height / inches))
    ]
    wide = max(len(c) for _, c in bands)
    heights = [inches * len(r) + 0.35 for r, _ in bands]
    figure = sized(inches * wide + 0.6, sum(heights) + 0.25)
    axes = figure.subplots(len(bands), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (r, c) in zip(axes, bands, strict=True):
        places = ((i, j) for i in range(len(r)) for j in range(len(c)) if path_of(r[i], c[j]).exists())
        draw_tiles(axis, (len(r), wide), (((i, j), pixels(path_of(r[i], c[j]).read_bytes())) for i, j in places))
        turned = 90 if inches < 0.5 else 0
        axis.set_xticks(range(len(c)), [columns[j] for j in c], rotation=turned)
        axis.set_yticks(range(len(r)), [rows[i] for i in r])
    return figure
