"""Figures of trajectories and of what their embeddings show: drift, clusters, topology."""

import textwrap

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.picture_file import pixels
from ditscope.core.shards import read_tar
from ditscope.core.tables import concat_tables
from ditscope.style import Files, grid

STRIPS = 12  # runs drawn
FRAMES = 8  # pictures of a run, evenly spaced


def trajectory_strips(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Pictures of the first runs of every network in order, between the first prompt and the last caption."""
    tables = [path for path in files["trajectories"] if path.suffix == ".parquet" and ".timing" not in path.name]
    table = concat_tables(tables, "trajectories")
    images = {
        (p.parent.name, s["__key__"]): s["png"]
        for p in files["trajectories"]
        if p.suffix == ".tar"
        for s in read_tar(p)
    }
    networks = table["network"].unique(maintain_order=True).to_list()
    each = max(1, STRIPS // len(networks))
    runs = [
        run
        for network in networks
        for run in table.filter(network=network)["run_id"].unique(maintain_order=True).to_list()[:each]
    ]
    figure, axes = grid(
        len(runs), FRAMES + 2, width=9, height=0.85 * len(runs), gridspec_kw={"width_ratios": [2, *[1] * FRAMES, 2]}
    )
    for row, run in zip(axes, runs, strict=True):
        states = table.filter(run_id=run).sort("sequence_number")
        pictures = states.filter(type="IMAGE")
        captions = states.filter((pl.col("type") == "TEXT") & (pl.col("sequence_number") >= 0))["output_text"]
        for axis in row:
            axis.set_axis_off()
        heading = f"{states['network'][0]}\n" + textwrap.fill(states["prompt"][0], 24)
        row[0].text(0, 0.5, heading, va="center", fontsize=6, parse_math=False)
        row[-1].text(
            0, 0.5, textwrap.fill(captions[-1] if len(captions) else "", 24), va="center", fontsize=6, parse_math=False
        )
        for axis, index in zip(row[1:-1], spaced(len(pictures), FRAMES), strict=False):
            shown = pictures.row(index, named=True)
            axis.imshow(pixels(images[shown["network"], shown["output_key"]]), interpolation="nearest")
            axis.set_title(f"{shown['sequence_number']}", fontsize=5, pad=1)
    return figure, table


def spaced(count: int, most: int) -> list[int]:
    """At most `most` indices of `count` things, evenly spaced, first and last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []
