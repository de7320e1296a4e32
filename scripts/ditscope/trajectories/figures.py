"""Figures of trajectories and of what their embeddings show: drift, clusters, topology."""

import textwrap

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.picture_file import pixels
from ditscope.core.shards import read_tar
from ditscope.core.tables import concat_tables
from ditscope.embed.files import FEWEST_DISTINCT
from ditscope.style import COLOURS, NARROW, SMALL, Files, draw_tiles, grid, note, page_width, plain, short, tell

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
    frames, wide, lines = (FRAMES, 24, 2) if page_width() > NARROW else (FRAMES // 2, 15, 1)
    figure, axes = grid(1, 1, height=0.3 + 0.66 * len(runs))
    rows = [strip_of(table.filter(run_id=run).sort("sequence_number"), frames) for run in runs]
    cells = (
        ((row, column), pixels(images[picture["network"], picture["output_key"]]))
        for row, (_, _, pictures) in enumerate(rows)
        for column, picture in enumerate(pictures)
    )
    draw_tiles(axes[0, 0], (len(runs), frames), cells)
    for row, (first, caption, pictures) in enumerate(rows):
        told = "\n".join([*poor.get(first["network"], [])][:lines])
        heading = f"{first['network']}\n{fitted(first['prompt'], wide, 2 if told else 3)}" + f"\n{told}" * bool(told)
        style = {"va": "center", "fontsize": SMALL}
        axes[0, 0].text(-0.6, row, heading, ha="right", **style)
        axes[0, 0].text(frames - 0.4, row, fitted(caption, wide, 4), ha="left", **style)
        for column, picture in enumerate(pictures):
            axes[0, 0].text(column, row - 0.5, f"{picture['sequence_number']}", ha="center", va="top", fontsize=SMALL,
                            bbox={"color": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5})  # fmt: skip
    tell(axes[0, 0], f"n = {table['run_id'].n_unique()} runs, {len(runs)} drawn")
    return figure, table


def strip_of(states: pl.DataFrame, frames: int) -> tuple[dict, str, list[dict]]:
    """The first state of a run, its last caption, and at most so many of its pictures, evenly spaced."""
    pictures = states.filter(type="IMAGE")
    captions = states.filter((pl.col("type") == "TEXT") & (pl.col("sequence_number") >= 0))["output_text"]
    chosen = [pictures.row(index, named=True) for index in spaced(len(pictures), frames)]
    return states.row(0, named=True), captions[-1] if len(captions) else "", chosen


def fitted(text: str, wide: int, lines: int) -> str:
    """A text on so many lines of so many letters at most."""
    return textwrap.fill(short(text, wide * lines - lines), wide, max_lines=lines, placeholder="\u2026")


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
    figure, axes = grid(1, 1, height=0.9 + 0.36 * len(entries))
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
        told = f"n = {len(of_entry)}, batches of {batch}", f"median {seconds.median():.3g} s"
        names.append("\n".join([short(entry, 40), *([", ".join(told)] if page_width() > NARROW else told)]))
    axis.set_yticks(range(len(names)), names, fontsize=SMALL, parse_math=False)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set(xscale="log", xlabel="seconds per invocation\n(its share of the batch)")
    plain(axis.xaxis)
    tell(axis, "images: blue, texts: orange", f"{times.height - own.height} shared answers left out")
    return figure, times
