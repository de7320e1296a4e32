"""Pictures that the study made: what was asked for beside what came out."""

import io
import textwrap
from collections.abc import Iterable
from itertools import product

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from PIL import Image, ImageOps

from ditscope.capture.files import DECODED, captures_in, decoded_file, intermediates_of, read_metadata
from ditscope.core.shards import samples_of_runs
from ditscope.publish.figures import Files
from ditscope.style import grid, note

ROWS, SEEDS = 12, 4
TILES_SIDE, GAP = 4096, 4  # longest side of pictures drawn as one, and the white between two of them, in pixels
GRID_INCHES = 24  # longest side of the grid of blocks
BLOCK_GRID = {"generation_id": pl.String, "step": pl.Int64, "block": pl.String, "decoded": pl.Boolean}


def image_grid(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The first prompts down, every model and its first seeds across."""
    samples = [s for path in files["generate"] if path.suffix == ".tar" for s in samples_of_runs(path)]
    records = pl.DataFrame([s["json"] for s in samples]).with_row_index("sample")
    place = pl.int_range(pl.len()).over("model", "prompt_id").alias("place")
    records = records.with_columns(place).filter(pl.col("place") < SEEDS)
    prompts = records["prompt_id"].unique(maintain_order=True).to_list()[:ROWS]
    columns = records.select("model", "place").unique().sort("model", "place").rows()
    figure, axes = grid(1, 1, width=2.2 + 0.95 * len(columns), height=0.3 + 0.95 * len(prompts))
    shown = records.filter(pl.col("prompt_id").is_in(prompts)).select("sample", "prompt_id", "model", "place")
    cells = (
        ((prompts.index(prompt_id), columns.index((model, place))), picture(samples[sample]["png"]))
        for sample, prompt_id, model, place in shown.rows()
    )
    draw_tiles(axes[0, 0], (len(prompts), len(columns)), cells)
    seeds = [records.filter(model=model, place=place)["seed"].unique().to_list() for model, place in columns]
    names = [
        f"{model}\n" + (f"seed {of[0]}" if len(of) == 1 else "own seeds")
        for (model, _), of in zip(columns, seeds, strict=True)
    ]
    asked = [textwrap.fill(records.filter(prompt_id=prompt_id)["prompt"][0], 26) for prompt_id in prompts]
    axes[0, 0].set_xticks(range(len(columns)), names)
    axes[0, 0].set_yticks(range(len(prompts)), asked, parse_math=False)
    return figure, records.drop("sample", "place")


def picture(png: bytes) -> np.ndarray:
    """A PNG as an array (height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def draw_tiles(axis: Axes, shape: tuple[int, int], cells: Iterable[tuple[tuple[int, int], np.ndarray]]) -> None:
    """Draw pictures (height, width, 3) uint8 as one image: cell (row, column) is around y = row, x = column.

    Cells are as large as the largest picture, the image at most TILES_SIDE pixels long and wide. An axis a picture
    would take minutes for some hundred.
    """
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=6)
    axis.xaxis.tick_top()
    axis.set_xticks([])
    axis.set_yticks([])
    most = max(1, TILES_SIDE // shape[1] - GAP), max(1, TILES_SIDE // shape[0] - GAP)
    tiles: dict[tuple[int, int], Image.Image] = {}
    for place, image in cells:
        tiles[place] = Image.fromarray(image)
        tiles[place].thumbnail(most)  # at once: all of them at full size could be gigabytes
    if not tiles:
        return
    width, height = (max(tile.size[side] for tile in tiles.values()) for side in (0, 1))
    mosaic = Image.new("RGB", (shape[1] * (width + GAP), shape[0] * (height + GAP)), "white")
    for (row, column), tile in tiles.items():
        fitted = ImageOps.contain(tile, (width, height), Image.Resampling.NEAREST)
        x, y = column * (width + GAP) + GAP // 2, row * (height + GAP) + GAP // 2
        mosaic.paste(fitted, (x + (width - fitted.width) // 2, y + (height - fitted.height) // 2))
    extent = (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)
    axis.imshow(np.asarray(mosaic), interpolation="nearest", extent=extent)
    axis.set_aspect((height + GAP) / (width + GAP))


def block_grid(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The first captured generation whose blocks are decoded: steps down, blocks across, every decode."""
    captures = [capture for folder in sorted(files["capture"]) for capture in captures_in(folder)]
    drawn = ((c, kind) for c in captures for kind in DECODED if (intermediates_of(c) / DECODED[kind]).is_dir())
    found = next(drawn, None)
    if found is None:
        return note("No capture set has decoded blocks."), pl.DataFrame(schema=BLOCK_GRID)
    generation, kind = found
    metadata = read_metadata(generation)
    steps, blocks = metadata["captured_steps"], metadata["captured_blocks"]
    paths = {(step, block): decoded_file(generation, kind, step, block) for step, block in product(steps, blocks)}
    inches = min(0.75, GRID_INCHES / max(len(steps), len(blocks)))
    figure, axes = grid(1, 1, width=inches * len(blocks) + 0.5, height=inches * len(steps) + 0.5)
    places = zip(np.ndindex(len(steps), len(blocks)), paths.values(), strict=True)
    cells = ((place, picture(path.read_bytes())) for place, path in places if path.exists())
    draw_tiles(axes[0, 0], (len(steps), len(blocks)), cells)
    names = [block.replace("_block_", " ") for block in blocks]
    axes[0, 0].set_xticks(range(len(blocks)), names, rotation=90 if inches < 0.75 else 0)
    axes[0, 0].set_yticks(range(len(steps)), [f"step {step}" for step in steps])
    records = [(generation.name, step, block, paths[step, block].exists()) for step in steps for block in blocks]
    return figure, pl.DataFrame(records, schema=BLOCK_GRID, orient="row")
