"""Pictures that the study made: what was asked for beside what came out."""

import io
import textwrap
from itertools import product

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas
from PIL import Image

from ditscope.capture_layout import DECODED, captures_in, decoded_file, intermediates_of, read_metadata
from ditscope.figures import Files
from ditscope.figures.style import grid, note
from ditscope.shards import samples_of_runs

ROWS, SEEDS = 12, 4
GRID_SIDE, GRID_INCHES, GAP = (
    4096,
    24,
    4,
)  # longest side of the grid of blocks in pixels and inches; pixels between cells
BLOCK_GRID = {"generation_id": pl.String, "step": pl.Int64, "block": pl.String, "decoded": pl.Boolean}


def image_grid(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The first prompts down, every model and its first seeds across."""
    samples = [s for path in files["generate"] if path.suffix == ".tar" for s in samples_of_runs(path)]
    records = pl.DataFrame([s["json"] for s in samples]).with_row_index("sample")
    place = pl.int_range(pl.len()).over("model", "prompt_id").alias("place")
    records = records.with_columns(place).filter(pl.col("place") < SEEDS)
    prompts = records["prompt_id"].unique(maintain_order=True).to_list()[:ROWS]
    columns = records.select("model", "place").unique().sort("model", "place").rows()
    figure, axes = grid(len(prompts), len(columns), width=2.2 + 0.95 * len(columns), height=0.3 + 0.95 * len(prompts))
    for row, prompt_id in enumerate(prompts):
        for column, (model, place) in enumerate(columns):
            axis = axes[row, column]
            axis.set_axis_off()
            found = records.filter(prompt_id=prompt_id, model=model, place=place)
            if len(found):
                axis.imshow(picture(samples[found["sample"][0]]["png"]), interpolation="nearest")
            if row == 0:
                seeds = records.filter(model=model, place=place)["seed"].unique()
                axis.set_title(f"{model}\n" + (f"seed {seeds[0]}" if len(seeds) == 1 else "own seeds"), fontsize=6)
            if column == 0:
                prompt = records.filter(prompt_id=prompt_id)["prompt"][0]
                axis.text(
                    -0.1,
                    0.5,
                    textwrap.fill(prompt, 26),
                    transform=axis.transAxes,
                    ha="right",
                    va="center",
                    fontsize=6,
                    parse_math=False,
                )
    return figure, records.drop("sample", "place")


def picture(png: bytes) -> np.ndarray:
    """A PNG as an array (height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def block_grid(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The first captured generation whose blocks are decoded: steps down, blocks across, every decode.

    All pictures are one image: an axis each would take minutes for a network of 57 blocks.
    """
    captures = [capture for folder in sorted(files["capture"]) for capture in captures_in(folder)]
    drawn = ((c, kind) for c in captures for kind in DECODED if (intermediates_of(c) / DECODED[kind]).is_dir())
    found = next(drawn, None)
    if found is None:
        return note("No capture set has decoded blocks."), pl.DataFrame(schema=BLOCK_GRID)
    generation, kind = found
    metadata = read_metadata(generation)
    steps, blocks = metadata["captured_steps"], metadata["captured_blocks"]
    paths = {(step, block): decoded_file(generation, kind, step, block) for step, block in product(steps, blocks)}
    with Image.open(next(path for path in paths.values() if path.exists())) as first:
        shrink = min(1.0, GRID_SIDE / (first.width * len(blocks)), GRID_SIDE / (first.height * len(steps)))
        width, height = (max(1, round(side * shrink)) for side in first.size)
    mosaic = Image.new("RGB", (len(blocks) * (width + GAP), len(steps) * (height + GAP)), "white")
    for (row, step), (column, block) in product(enumerate(steps), enumerate(blocks)):
        if paths[step, block].exists():
            with Image.open(paths[step, block]) as image:
                cell = image.convert("RGB").resize((width, height)) if shrink < 1 else image.convert("RGB")
                mosaic.paste(cell, (column * (width + GAP), row * (height + GAP)))
    inches = min(0.75, GRID_INCHES / max(len(steps), len(blocks)))
    figure, axes = grid(1, 1, width=inches * len(blocks) + 0.5, height=inches * len(steps) + 0.5)
    axis = axes[0, 0]
    axis.imshow(np.asarray(mosaic), interpolation="nearest", aspect="auto")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=6)
    axis.xaxis.tick_top()
    names = [block.replace("_block_", " ") for block in blocks]
    axis.set_xticks([(i + 0.5) * (width + GAP) for i in range(len(blocks))], names, rotation=90 if inches < 0.75 else 0)
    axis.set_yticks([(i + 0.5) * (height + GAP) for i in range(len(steps))], [f"step {step}" for step in steps])
    records = [(generation.name, step, block, paths[step, block].exists()) for step in steps for block in blocks]
    return figure, pl.DataFrame(records, schema=BLOCK_GRID, orient="row")
