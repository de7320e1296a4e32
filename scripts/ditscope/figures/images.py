"""Pictures that the study made: what was asked for beside what came out."""

import io
import json
import textwrap

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas
from PIL import Image

from ditscope.figures import Files
from ditscope.figures.style import grid
from ditscope.shards import samples_of_runs

ROWS, SEEDS = 12, 4


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
    """The first captured generation of the first model: steps down, blocks across, every decode."""
    folder = sorted(files["capture"])[0]
    generation = sorted(path for path in folder.iterdir() if (path / "intermediates").is_dir())[0]
    metadata = json.loads((generation / "intermediates/metadata.json").read_text())
    steps, blocks = metadata["captured_steps"], metadata["captured_blocks"]
    figure, axes = grid(len(steps), len(blocks), width=0.75 * len(blocks) + 0.5, height=0.75 * len(steps) + 0.5)
    records = []
    for row, step in enumerate(steps):
        for column, block in enumerate(blocks):
            axis = axes[row, column]
            path = generation / f"intermediates/decoded/step_{step}/{block}.jpg"
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if path.exists():
                axis.imshow(np.asarray(Image.open(path)), interpolation="nearest")
            if row == 0:
                axis.set_title(block.replace("_block_", " "), fontsize=6)
            if column == 0:
                axis.set_ylabel(f"step {step}", fontsize=6)
            records.append({"generation_id": generation.name, "step": step, "block": block, "decoded": path.exists()})
    return figure, pl.DataFrame(records)
