"""Figures of the stage `cluster`."""

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.style import COLOURS, Files, facets, grid, named, note, write_counts

OUTLIER = "#cccccc"


STATE = ["embedder", "network", "run_id", "sequence_number"]


def cluster_map(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """t-SNE of the states of each embedder, coloured by cluster; outliers grey."""
    table = labelled_map(files)
    if table.is_empty():
        return note("Too few states for a map."), table
    embedders = table["embedder"].unique(maintain_order=True).to_list()
    figure, axes = grid(1, len(embedders), width=2.6 * len(embedders), height=2.8)
    for axis, embedder in zip(axes[0], embedders, strict=True):
        points = table.filter(embedder=embedder)
        label = points["label"].fill_null(-1).to_numpy()
        outlier = label < 0
        axis.scatter(points["x"].to_numpy()[outlier], points["y"].to_numpy()[outlier], s=4, color=OUTLIER, linewidth=0)
        axis.scatter(
            points["x"].to_numpy()[~outlier],
            points["y"].to_numpy()[~outlier],
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
    """Transition probabilities between clusters (-1: outlier), one matrix for each embedder and network.

    In brackets: the number of transitions that leave each cluster.
    """
    table = concat_tables(named(files, "cluster", "transitions.parquet"), "clusters.transitions")
    if table.is_empty():
        return note("No transitions: too few states were clustered."), table
    figure, cells = facets(table, height=2.2)
    for (embedder, network), axis in cells.items():
        transitions = table.filter(embedder=embedder, network=network)
        labels = sorted({*transitions["source"], *transitions["target"]})
        matrix = np.zeros((len(labels), len(labels)))
        for row in transitions.to_dicts():
            matrix[labels.index(row["source"]), labels.index(row["target"])] = row["probability"]
        image = axis.imshow(matrix, vmin=0, vmax=1, aspect="equal")
        step = max(1, len(labels) // 8)
        axis.set_xticks(range(0, len(labels), step), labels[::step])
        leaving = dict(transitions.group_by("source").agg(pl.col("count").sum()).rows())
        axis.set_yticks(range(0, len(labels), step), [f"{x} ({leaving.get(x, 0)})" for x in labels[::step]])
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
        lengths = table.filter(embedder=embedder, network=network)
        inside, outside = lengths.filter(pl.col("label") >= 0)["length"], lengths.filter(pl.col("label") < 0)["length"]
        bins = np.arange(0.5, longest + 1.5)
        axis.hist(
            [inside, outside], bins=bins, stacked=True, color=[COLOURS[0], OUTLIER], label=["in a cluster", "outliers"]
        )
        axis.set_xlabel("run length / states")
        axis.set_ylabel("runs")
    next(iter(cells.values())).legend()
    return figure, table


def dwell_times(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Share of stays in a cluster that last longer than so many states (Kaplan-Meier), and how many were followed."""
    table = concat_tables(named(files, "cluster", "dwell_times.parquet"), "clusters.dwell_times")
    if table.is_empty():
        return note("No stay in a cluster was followed over a state."), table
    figure, cells = facets(table, sharex=True, sharey=True)
    for (embedder, network), axis in cells.items():
        stays = table.filter(embedder=embedder, network=network)
        axis.step([0, *stays["duration"]], [1, *stays["survival"]], where="post", color=COLOURS[0])
        cut = stays.filter(pl.col("censored") > 0)
        axis.plot(cut["duration"], cut["survival"], "|", color=COLOURS[0], markersize=4)
        write_counts(axis, stays["duration"], stays["at_risk"])
        axis.set_ylim(0, 1.15)
        axis.set_xlabel("stay / states")
        axis.set_ylabel("share that stays")
    return figure, table


def labelled_map(files: Files) -> pl.DataFrame:
    """The t-SNE points that have coordinates, each with its cluster label and text."""
    points = concat_tables(named(files, "cluster", "map.parquet"), "clusters.map")
    labels = concat_tables(named(files, "cluster", "clusters.parquet"), "clusters")
    joined = points.join(labels.select(*STATE, "label", "text"), on=STATE, how="left", maintain_order="left")
    return joined.drop_nulls(["x", "y"])


def paper_table(files: Files) -> pl.DataFrame:
    """Clusters, outliers, longest stays and returns by embedder and network."""
    keys = ["embedder", "network"]
    shares = concat_tables(named(files, "cluster", "outliers.parquet"), "clusters.outliers")
    stays = concat_tables(named(files, "cluster", "longest_runs.parquet"), "clusters.longest_runs")
    returns = concat_tables(named(files, "cluster", "returns.parquet"), "clusters.returns")
    longest = stays.filter(pl.col("scope").cast(pl.String) == "anytime").group_by(keys)
    came_back = (pl.col("returns") > 0).mean().alias("share_of_runs_that_return")
    return (
        shares.select(*keys, "states", "clusters", "outliers_share")
        .join(longest.agg(pl.col("length").median().alias("median_longest_stay")), on=keys, how="left")
        .join(returns.group_by(keys).agg(came_back), on=keys, how="left")
        .sort(keys)
    )
