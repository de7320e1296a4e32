"""Figures of trajectories and of what their embeddings show: drift, clusters, topology."""

import textwrap

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.shards import read_tar
from ditscope.core.tables import concat_tables
from ditscope.generate.figures import picture
from ditscope.publish.figure_data import drift_quantiles, labelled_map, named
from ditscope.publish.figures import Files
from ditscope.style import COLOURS, grid, note

STRIPS = 12  # runs drawn
FRAMES = 8  # pictures of a run, evenly spaced
OUTLIER = "#cccccc"


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
            axis.imshow(picture(images[shown["network"], shown["output_key"]]), interpolation="nearest")
            axis.set_title(f"{shown['sequence_number']}", fontsize=5, pad=1)
    return figure, table


def spaced(count: int, most: int) -> list[int]:
    """At most `most` indices of `count` things, evenly spaced, first and last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def facets(table: pl.DataFrame, width: float = 7.5, height: float = 1.7, **kwargs):
    """Axes of embedder (rows) by network (columns), as a dict."""
    embedders = table["embedder"].unique(maintain_order=True).to_list()
    networks = table["network"].unique(maintain_order=True).to_list()
    figure, axes = grid(len(embedders), len(networks), width=width, height=0.4 + height * len(embedders), **kwargs)
    cells = {(e, n): axes[i, j] for i, e in enumerate(embedders) for j, n in enumerate(networks)}
    for (embedder, network), axis in cells.items():
        axis.set_title(f"{embedder} ~ {network}", fontsize=7)
    return figure, cells


def drift_curves(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Cosine distance to the first state: median and quartiles over runs, with the shuffled control dashed."""
    curves = drift_quantiles(files)
    figure, cells = facets(curves, sharex=True, sharey="row")
    for (embedder, network), axis in cells.items():
        for control, colour, dash in (("observed", COLOURS[0], "-"), ("shuffled", COLOURS[1], "--")):
            line = curves.filter(pl.col("control").cast(pl.String) == control, embedder=embedder, network=network)
            axis.plot(line["sequence_number"], line["q50"], color=colour, linestyle=dash, label=control)
            if control == "observed":
                axis.fill_between(
                    line["sequence_number"], line["q25"], line["q75"], color=colour, alpha=0.2, linewidth=0
                )
        axis.set_ylabel("cosine distance")
        axis.set_xlabel("sequence number")
    next(iter(cells.values())).legend()
    return figure, curves


def cluster_map(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """t-SNE of the states of each embedder, coloured by cluster; outliers grey."""
    table = labelled_map(files)
    if table.is_empty():
        return note("Too few states for a map."), table
    embedders = table["embedder"].unique(maintain_order=True).to_list()
    figure, axes = grid(1, len(embedders), width=2.6 * len(embedders), height=2.8)
    for axis, embedder in zip(axes[0], embedders, strict=True):
        mine = table.filter(embedder=embedder)
        label = mine["label"].fill_null(-1).to_numpy()
        outlier = label < 0
        axis.scatter(mine["x"].to_numpy()[outlier], mine["y"].to_numpy()[outlier], s=4, color=OUTLIER, linewidth=0)
        axis.scatter(
            mine["x"].to_numpy()[~outlier],
            mine["y"].to_numpy()[~outlier],
            s=6,
            c=label[~outlier],
            cmap="tab20",
            linewidth=0,
        )
        axis.set_title(f"{embedder}: {len(np.unique(label[~outlier]))} clusters, {outlier.mean():.0%} outliers")
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, table


def cluster_transitions(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Transition probabilities between clusters (-1: outlier), one matrix for each embedder and network."""
    table = concat_tables(named(files, "cluster", "transitions.parquet"), "clusters.transitions")
    if table.is_empty():
        return note("No transitions: too few states were clustered."), table
    figure, cells = facets(table, height=2.2)
    for (embedder, network), axis in cells.items():
        mine = table.filter(embedder=embedder, network=network)
        labels = sorted({*mine["source"], *mine["target"]})
        matrix = np.zeros((len(labels), len(labels)))
        for row in mine.to_dicts():
            matrix[labels.index(row["source"]), labels.index(row["target"])] = row["probability"]
        image = axis.imshow(matrix, vmin=0, vmax=1, aspect="equal")
        step = max(1, len(labels) // 8)
        axis.set_xticks(range(0, len(labels), step), labels[::step])
        axis.set_yticks(range(0, len(labels), step), labels[::step])
        axis.set_xlabel("to")
        axis.set_ylabel("from")
    figure.colorbar(image, ax=list(cells.values()), label="probability", shrink=0.6)
    return figure, table


def run_lengths(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Distribution of run lengths in clusters and outside, by embedder and network."""
    table = concat_tables(named(files, "cluster", "run_lengths.parquet"), "clusters.run_lengths")
    if table.is_empty():
        return note("No runs: too few states were clustered."), table
    figure, cells = facets(table, sharex=True)
    longest = table["length"].max()
    for (embedder, network), axis in cells.items():
        mine = table.filter(embedder=embedder, network=network)
        inside, outside = mine.filter(pl.col("label") >= 0)["length"], mine.filter(pl.col("label") < 0)["length"]
        bins = np.arange(0.5, longest + 1.5)
        axis.hist(
            [inside, outside], bins=bins, stacked=True, color=[COLOURS[0], OUTLIER], label=["in a cluster", "outliers"]
        )
        axis.set_xlabel("run length / states")
        axis.set_ylabel("runs")
    next(iter(cells.values())).legend()
    return figure, table


def persistence_diagrams(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Birth against death of every bar, coloured by homology dimension."""
    table = concat_tables(named(files, "topology", "diagrams.parquet"), "topology.diagrams")
    finite = table.filter(pl.col("death").is_not_null())
    if finite.is_empty():
        return note("No finite bars."), table
    figure, cells = facets(finite, height=2.2)
    for (embedder, network), axis in cells.items():
        mine = finite.filter(embedder=embedder, network=network)
        top = mine["death"].max() or 1.0
        axis.plot([0, top], [0, top], color=COLOURS[7], linewidth=0.8)
        for colour, dimension in zip(COLOURS, ("H₀", "H₁", "H₂"), strict=False):
            bars = mine.filter(pl.col("dimension").cast(pl.String) == dimension)
            axis.scatter(bars["birth"], bars["death"], s=5, color=colour, label=dimension, linewidth=0)
        axis.set_xlabel("birth")
        axis.set_ylabel("death")
    next(iter(cells.values())).legend(markerscale=2)
    return figure, table


def persistence_entropy(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Persistent entropy of every run, by dimension, embedder and network."""
    table = concat_tables(named(files, "topology", "entropy.parquet"), "topology.entropy")
    shown = table.filter(pl.col("entropy").is_not_null())
    if shown.is_empty():
        return note("No dimension has a bar of positive length."), table
    figure, cells = facets(shown, sharey="row")
    rng = np.random.default_rng(0)
    for (embedder, network), axis in cells.items():
        for x, dimension in enumerate(("H₀", "H₁", "H₂")):
            values = shown.filter(pl.col("dimension").cast(pl.String) == dimension, embedder=embedder, network=network)[
                "entropy"
            ]
            axis.scatter(x + rng.uniform(-0.15, 0.15, len(values)), values, s=5, color=COLOURS[x], linewidth=0)
            if len(values):
                axis.plot([x - 0.25, x + 0.25], [values.median()] * 2, color="black", linewidth=1)
        axis.set_xticks(range(3), ["H₀", "H₁", "H₂"])
        axis.set_ylabel("entropy / nat")
    return figure, table
