"""Pictures that the study made: what was asked for beside what came out."""

import textwrap

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.picture_file import pixels
from ditscope.core.shards import samples_of_runs
from ditscope.style import Files, draw_tiles, grid, page_width, short

ROWS, SEEDS = 12, 4
NAMES, TALL = 1.4, 8.2  # inches of the prompts beside the pictures, and of all pictures at most


def seeds_of(models: int) -> int:
    """How many seeds of each model stand side by side, so that each picture can be named."""
    return max(1, min(SEEDS, int((page_width() - NAMES) / 0.5 / models)))


def image_grid(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The first prompts down, every model and its first seeds across."""
    samples = [s for path in files["generate"] if path.suffix == ".tar" for s in samples_of_runs(path)]
    records = pl.DataFrame([s["json"] for s in samples]).with_row_index("sample")
    place = pl.int_range(pl.len()).over("model", "prompt_id").alias("place")
    records = records.with_columns(place).filter(pl.col("place") < seeds_of(records["model"].n_unique()))
    prompts = records["prompt_id"].unique(maintain_order=True).to_list()[:ROWS]
    columns = records.select("model", "place").unique().sort("model", "place").rows()
    inches = min(0.75, (page_width() - NAMES) / len(columns), TALL / len(prompts))
    figure, axes = grid(1, 1, width=NAMES + inches * len(columns), height=0.4 + inches * len(prompts))
    shown = records.filter(pl.col("prompt_id").is_in(prompts)).select("sample", "prompt_id", "model", "place")
    cells = (
        ((prompts.index(prompt_id), columns.index((model, place))), pixels(samples[sample]["png"]))
        for sample, prompt_id, model, place in shown.rows()
    )
    draw_tiles(axes[0, 0], (len(prompts), len(columns)), cells)
    seeds = [records.filter(model=model, place=place)["seed"].unique().to_list() for model, place in columns]
    model_letters = max(6, int(inches * 16))
    names = [
        f"{textwrap.fill(model, model_letters)}\n" + (f"seed {of[0]}" if len(of) == 1 else "own seeds")
        for (model, _), of in zip(columns, seeds, strict=True)
    ]
    asked = [textwrap.fill(short(records.filter(prompt_id=prompt_id)["prompt"][0], 72), 26) for prompt_id in prompts]
    axes[0, 0].set_xticks(range(len(columns)), names)
    axes[0, 0].set_yticks(range(len(prompts)), asked, parse_math=False)
    return figure, records.drop("sample", "place")
