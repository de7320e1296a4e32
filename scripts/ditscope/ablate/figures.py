"""Figures of the stage `ablate`."""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.blocks.tables import BLOCK
from ditscope.core.picture_file import pixels
from ditscope.core.shards import read_tar
from ditscope.core.tables import concat_tables
from ditscope.style import COLOURS, SMALL, Files, draw_tiles

PICTURES_INCHES = 24  # width of all ablated pictures at most


def ablation_effects(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """What leaving out each block, or blurring what it adds, does to the latents, and to the picture of one run."""
    data = concat_tables([p for p in files["ablate"] if p.suffix == ".parquet"], "ablation")
    keys = [*BLOCK, "kind"]
    effects = ["latent_relative_l2", "psnr_db", "ssim", "feature_cosine_distance"]
    means = data.group_by(keys).agg(*(pl.col(c).mean() for c in effects), pl.len().alias("runs")).sort(keys)
    models, kinds = means["model"].unique().sort().to_list(), means["kind"].unique().sort(descending=True).to_list()
    most = max(means.filter(model=model)["depth"].n_unique() for model in models)
    inches = min(0.75, PICTURES_INCHES / (most + 1))  # of a picture: a column per block, of which FLUX has 57
    below = 0.3 + max(0.6, 1.2 * inches) * len(kinds)  # room to spare: pictures as wide as the bars stand under them
    figure = Canvas(figsize=(max(4.5, inches * (most + 1) + 0.8), len(models) * (1.7 + below)))
    layout = figure.add_gridspec(2 * len(models), 1 + most, height_ratios=[1.7, below] * len(models))
    for number, model in enumerate(models):
        part = means.filter(model=model)
        names = part.select("depth", "block_type", "block_index", "block").unique().sort("depth").rows()
        axis = figure.add_subplot(layout[2 * number, 1 : 1 + len(names)])
        for i, kind in enumerate(kinds):
            heights = part.filter(kind=kind).sort("depth")["latent_relative_l2"]
            places = np.arange(len(heights)) + (i - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
            axis.bar(places, heights, 0.8 / len(kinds), label=kind, color=COLOURS[i])
        axis.set_xticks(range(len(names)), [f"{k[0]}{i}" for _, k, i, _ in names])
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_title(f"{model}: relative change of the latents")
        axis.legend()
        pictures = first_pictures(files["ablate"], model)
        first = figure.add_subplot(layout[2 * number + 1, 0])
        unchanged = [pixels(pictures[place]) for place in [("none", "none")] if place in pictures]
        draw_tiles(first, (len(kinds), 1), (((0, 0), image) for image in unchanged))
        first.set_title("unchanged", fontsize=SMALL)
        first.set_yticks(range(len(kinds)), kinds)
        cells = (
            ((row, column), pixels(pictures[block, kind]))
            for row, kind in enumerate(kinds)
            for column, (*_, block) in enumerate(names)
            if (block, kind) in pictures
        )
        tiles = figure.add_subplot(layout[2 * number + 1, 1 : 1 + len(names)])
        draw_tiles(tiles, (len(kinds), len(names)), cells)
        for below_bars in (first, tiles):
            below_bars.set_anchor("N")
    return figure, means


def first_pictures(paths: list[Path], model: str) -> dict[tuple[str, str], bytes]:
    """PNGs of the first run of a model by block and kind of ablation."""
    samples = [s for path in paths if path.name == f"{model}.tar" for s in read_tar(path)]
    return {(s["json"]["block"], s["json"]["kind"]): s["png"] for s in samples}
