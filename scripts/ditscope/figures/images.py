"""Pictures that the study made: what was asked for beside what came out."""

import io
import textwrap

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas
from PIL import Image

from ditscope.figures import Files
from ditscope.figures.style import grid
from ditscope.shards import read_tar

ROWS = 12


def image_grid(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The first prompts down, every model and seed across."""
    samples = [s for path in files["generate"] if path.suffix == ".tar" for s in read_tar(path)]
    records = pl.DataFrame([s["json"] for s in samples]).with_row_index("sample")
    prompts = records["prompt_id"].unique(maintain_order=True).to_list()[:ROWS]
    columns = records.select("model", "seed").unique().sort("model", "seed").rows()
    figure, axes = grid(len(prompts), len(columns), width=2.2 + 0.95 * len(columns), height=0.3 + 0.95 * len(prompts))
    for row, prompt_id in enumerate(prompts):
        for column, (model, seed) in enumerate(columns):
            axis = axes[row, column]
            axis.set_axis_off()
            found = records.filter(prompt_id=prompt_id, model=model, seed=seed)
            if len(found):
                axis.imshow(picture(samples[found["sample"][0]]["png"]), interpolation="nearest")
            if row == 0:
                axis.set_title(f"{model}\nseed {seed}", fontsize=6)
            if column == 0:
                prompt = records.filter(prompt_id=prompt_id)["prompt"][0]
                axis.text(-0.1, 0.5, textwrap.fill(prompt, 26), transform=axis.transAxes, ha="right", va="center", fontsize=6)
    return figure, records.drop("sample")


def picture(png: bytes) -> np.ndarray:
    """A PNG as an array (height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
