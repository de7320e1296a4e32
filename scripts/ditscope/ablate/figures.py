"""Figures of the stage `ablate`."""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ditscope.blocks.tables import BLOCK
from ditscope.core.picture_file import pixels
from ditscope.core.shards import read_tar
from ditscope.core.tables import concat_tables
from ditscope.style import COLOURS, SMALL, Files, chunks, draw_tiles, note, page_width, sized, tell

TILE = 0.6  # inches of a picture, at least


def ablation_effects(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """What leaving out each block, or blurring what it adds, does to the latents (n runs), and to the picture of one.

    A deep network's blocks stand in several bands, one below the other.
    """
    data = concat_tables([p for p in files["ablate"] if p.suffix == ".parquet"], "ablation")
    keys = [*BLOCK, "kind"]
    effects = ["latent_relative_l2", "psnr_db", "ssim", "feature_cosine_distance"]
    means = data.group_by(keys).agg(*(pl.col(c).mean() for c in effects), pl.len().alias("runs")).sort(keys)
    if means.is_empty():
        return note("No block was left out."), means
    kinds = means["kind"].unique().sort(descending=True).to_list()
    bands = []
    for model in means["model"].unique().sort():
        blocks = means.filter(model=model)["depth"].unique().sort().to_list()
        bands += [(model, depths) for depths in chunks(blocks, int((page_width() - 0.7) / TILE) - 1)]
    most = max(len(depths) for _, depths in bands)
    inches = (page_width() - 0.7) / (most + 1)  # of a picture, which stands below its bars
    heights = [1.5, 0.3 + 1.15 * inches * len(kinds)]
    figure = sized(page_width(), 0.2 + len(bands) * (sum(heights) + 0.2))
    layout = figure.add_gridspec(2 * len(bands), 1 + most, height_ratios=heights * len(bands))
    for number, (model, depths) in enumerate(bands):
        part = means.filter(pl.col("depth").is_in(depths), model=model)
        bars = figure.add_subplot(layout[2 * number, 1 : 1 + len(depths)])
        draw_bars(bars, part, kinds)
        tell(bars, f"{model}: relative change of the latents, n = {part['runs'].max()} runs")
        unchanged = figure.add_subplot(layout[2 * number + 1, 0])
        changed = figure.add_subplot(layout[2 * number + 1, 1 : 1 + len(depths)])
        draw_pictures(unchanged, changed, first_pictures(files["ablate"], model), part, kinds)
    figure.legend(*bars.get_legend_handles_labels(), loc="outside upper left", ncols=len(kinds))
    return figure, means


def draw_bars(axis: Axes, part: pl.DataFrame, kinds: list[str]) -> None:
    """A bar of each kind of ablation for each block."""
    for i, kind in enumerate(kinds):
        heights = part.filter(kind=kind).sort("depth")["latent_relative_l2"]
        places = np.arange(len(heights)) + (i - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
        axis.bar(places, heights, 0.8 / len(kinds), label=kind, color=COLOURS[i])
    names = part.select("depth", "block_type", "block_index").unique().sort("depth").rows()
    axis.set_xticks(range(len(names)), [f"{kind[0]}{i}" for _, kind, i in names])
    axis.set_xlim(-0.5, len(names) - 0.5)


def draw_pictures(
    unchanged: Axes, changed: Axes, pictures: dict[tuple[str, str], bytes], part: pl.DataFrame, kinds: list[str]
) -> None:
    """The picture of the first run without an ablation, and of each ablation below its bars."""
    blocks = part.select("depth", "block").unique().sort("depth")["block"].to_list()
    whole = [pixels(pictures[place]) for place in [("none", "none")] if place in pictures]
    draw_tiles(unchanged, (len(kinds), 1), (((0, 0), image) for image in whole))
    unchanged.set_title("unchanged", fontsize=SMALL)
    unchanged.set_yticks(range(len(kinds)), kinds)
    cells = (
        ((row, column), pixels(pictures[block, kind]))
        for row, kind in enumerate(kinds)
        for column, block in enumerate(blocks)
        if (block, kind) in pictures
    )
    draw_tiles(changed, (len(kinds), len(blocks)), cells)
    for below_bars in (unchanged, changed):
        below_bars.set_anchor("N")


def first_pictures(paths: list[Path], model: str) -> dict[tuple[str, str], bytes]:
    """PNGs of the first run of a model by block and kind of ablation."""
    samples = [s for path in paths if path.name == f"{model}.tar" for s in read_tar(path)]
    return {(s["json"]["block"], s["json"]["kind"]): s["png"] for s in samples}
