"""Figures of the stage `capture`."""

from itertools import product

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.capture.files import DECODED, captures_in, decoded_file, intermediates_of, read_metadata
from ditscope.core.picture_file import pixels
from ditscope.style import Files, draw_tiles, grid, note

GRID_INCHES = 24  # longest side of the grid of blocks
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
    inches = min(0.75, GRID_INCHES / max(len(steps), len(blocks)))
    figure, axes = grid(1, 1, width=inches * len(blocks) + 0.5, height=inches * len(steps) + 0.5)
    places = zip(np.ndindex(len(steps), len(blocks)), paths.values(), strict=True)
    cells = ((place, pixels(path.read_bytes())) for place, path in places if path.exists())
    draw_tiles(axes[0, 0], (len(steps), len(blocks)), cells)
    names = [block.replace("_block_", " ") for block in blocks]
    axes[0, 0].set_xticks(range(len(blocks)), names, rotation=90 if inches < 0.75 else 0)
    axes[0, 0].set_yticks(range(len(steps)), [f"step {step}" for step in steps])
    records = [(generation.name, step, block, paths[step, block].exists()) for step in steps for block in blocks]
    return figure, pl.DataFrame(records, schema=BLOCK_GRID, orient="row")
