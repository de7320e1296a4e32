"""Figures of trajectories and of what their embeddings show: drift, clusters, topology."""

import textwrap

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.picture_file import pixels
from ditscope.core.shards import read_tar
from ditscope.core.tables import concat_tables
from ditscope.embed.files import FEWEST_DISTINCT
from ditscope.style import COLOURS, SMALL, Files, grid, note, short

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
    poor = degenerate_networks(table)
    figure, axes = grid(
        len(runs), FRAMES + 2, width=9, height=0.85 * len(runs), gridspec_kw={"width_ratios": [2, *[1] * FRAMES, 2]}
    )
    for row, run in zip(axes, runs, strict=True):
        states = table.filter(run_id=run).sort("sequence_number")
        pictures = states.filter(type="IMAGE")
        captions = states.filter((pl.col("type") == "TEXT") & (pl.col("sequence_number") >= 0))["output_text"]
        for axis in row:
            axis.set_axis_off()
        network = states["network"][0]
        heading = "\n".join([network, textwrap.fill(states["prompt"][0], 24), *poor.get(network, [])])
        row[0].text(0, 0.5, heading, va="center", fontsize=SMALL, parse_math=False)
        row[-1].text(
            0,
            0.5,
            textwrap.fill(captions[-1] if len(captions) else "", 24),
            va="center",
            fontsize=SMALL,
            parse_math=False,
        )
        for axis, index in zip(row[1:-1], spaced(len(pictures), FRAMES), strict=False):
            shown = pictures.row(index, named=True)
            axis.imshow(pixels(images[shown["network"], shown["output_key"]]), interpolation="nearest")
            axis.set_title(f"{shown['sequence_number']}", fontsize=SMALL, pad=1)
    return figure, table


def degenerate_networks(table: pl.DataFrame) -> dict[str, list[str]]:
    """What is to be said of networks whose median run has fewer than FEWEST_DISTINCT distinct states of each type."""
    generated = table.filter(pl.col("sequence_number") >= 0)
    runs = generated.group_by("network", "run_id", "type").agg(pl.col("output_key").n_unique(), pl.len())
    types = runs.group_by("network", "type").agg(pl.col("output_key", "len").median()).sort("network", "type")
    poor = types.filter((pl.col("output_key") < FEWEST_DISTINCT).all().over("network"))
    told: dict[str, list[str]] = {}
    for network, kind, distinct, states in poor.rows():
        told.setdefault(network, ["degenerate"]).append(f"{distinct:g} of {states:g} {kind.lower()}s distinct")
    return told


def spaced(count: int, most: int) -> list[int]:
    """At most `most` indices of `count` things, evenly spaced, first and last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def invocation_times(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Seconds of each invocation by the entry that answered it; requests that another one answered are left out."""
    tables = [path for path in files["trajectories"] if path.suffix == ".parquet" and ".timing" not in path.name]
    times = concat_tables([path.with_suffix(".timing.parquet") for path in tables], "trajectories.timing")
    own = times.filter(~pl.col("shared"))
    if own.is_empty():
        return note("No invocation was timed."), times
    entries = own.select("type", "entry").unique().sort("type", "entry").rows()
    figure, axes = grid(1, 1, width=5.5, height=0.9 + 0.32 * len(entries))
    axis, rng = axes[0, 0], np.random.default_rng(0)
    names = []
    for y, (kind, entry) in enumerate(entries):
        of_entry = own.filter(type=kind, entry=entry)
        seconds = of_entry["seconds"]
        axis.scatter(
            seconds,
            y + rng.uniform(-0.25, 0.25, len(of_entry)),
            s=4,
            linewidth=0,
            alpha=0.4,
            color=COLOURS[kind == "TEXT"],
        )
        axis.plot(seconds.median(), y, "|", color="black", markersize=12)
        sizes = of_entry["batch_size"]
        batch = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
        names.append(f"{short(entry, 40)}\nn = {len(of_entry)}, batches of {batch}, median {seconds.median():.3g} s")
    axis.set_yticks(range(len(names)), names, fontsize=SMALL, parse_math=False)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set(xscale="log", xlabel="seconds per invocation (its share of the batch)")
    axis.set_title(f"images: blue, texts: orange; {times.height - own.height} shared answers left out", fontsize=6.5)
    return figure, times
