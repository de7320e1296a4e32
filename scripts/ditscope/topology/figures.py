"""Figures of the stage `topology`."""

from itertools import product

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.embed.tables import SEEDS_KINDS
from ditscope.style import COLOURS, GREY, SMALL, Files, empty, facets, is_leftmost, legend, named, note, tell
from ditscope.topology.tables import HOMOLOGY, RELATIONS, SURROGATES

FEWEST = 8  # pairs below which no box is drawn


def persistence_diagrams(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Birth against death of every bar, coloured by homology dimension."""
    table = concat_tables(named(files, "topology", "diagrams.parquet"), "topology.diagrams")
    if table["death"].count() == 0:
        return note("No finite bars."), table
    figure, cells = facets(table, xlabel="birth", ylabel="death", sharey="row")
    for (embedder, network), axis in cells.items():
        panel = table.filter(embedder=embedder, network=network)
        finite = panel.drop_nulls("death")
        tell(axis, f"n = {finite.height} bars, {panel['run_id'].n_unique()} runs")
        if finite.is_empty():
            empty(axis, "no finite bar: one distinct state per run")
            continue
        top = finite["death"].max()
        axis.plot([0, top], [0, top], color=COLOURS[7], linewidth=0.8)
        for colour, dimension in zip(COLOURS, HOMOLOGY, strict=False):
            bars = finite.filter(pl.col("dimension").cast(pl.String) == dimension)
            if len(bars):
                axis.scatter(
                    bars["birth"],
                    bars["death"],
                    s=5,
                    color=colour,
                    label=dimension,
                    linewidth=0,
                    alpha=0.6,
                    rasterized=True,
                )
    legend(cells, markerscale=2)
    return figure, table


def persistence_entropy(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Persistent entropy of every run, by dimension, embedder and network; how many runs have a bar to tell of."""
    table = concat_tables(named(files, "topology", "entropy.parquet"), "topology.entropy")
    if table["entropy"].count() == 0:
        return note("No dimension has a bar of positive length."), table
    dimensions = [d for d in HOMOLOGY if d in table["dimension"].cast(pl.String).unique().to_list()]
    figure, cells = facets(table, ylabel="entropy / nat", sharey="row")
    rng = np.random.default_rng(0)
    for (embedder, network), axis in cells.items():
        counts = []
        for x, dimension in enumerate(dimensions):
            runs = table.filter(pl.col("dimension").cast(pl.String) == dimension, embedder=embedder, network=network)
            values = runs["entropy"].drop_nulls()
            counts.append(f"{dimension}\n{len(values)} of {len(runs)}")
            axis.scatter(
                x + rng.uniform(-0.15, 0.15, len(values)), values, s=5, color=COLOURS[x], linewidth=0, rasterized=True
            )
            if len(values):
                axis.plot([x - 0.25, x + 0.25], [values.median()] * 2, color="black", linewidth=1)
        axis.set_xticks(range(len(dimensions)), counts)
        axis.set_xlim(-0.5, len(dimensions) - 0.5)
    return figure, table


def diagram_distances(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Wasserstein distances of diagrams of two runs of one kind of seeds, by what they differ in, and by that kind.

    Pairs that differ in the seed alone are the noise floor.
    """
    table = concat_tables(named(files, "topology", "distances.parquet"), "topology.distances")
    if table.is_empty():
        return note("No two runs to compare."), table
    shown = table.with_columns(pl.col("dimension", "relation", "seeds").cast(pl.String))
    kinds = [kind for kind in SEEDS_KINDS if kind in shown["seeds"]]
    rows = list(product(RELATIONS, kinds))
    figure, cells = facets(shown, by=("embedder_a", "dimension"), xlabel="Wasserstein distance", letters=32)
    rng = np.random.default_rng(0)
    for (embedder, dimension), axis in cells.items():
        panel = shown.filter(embedder_a=embedder, dimension=dimension)
        names = []
        for y, (relation, kind) in enumerate(rows):
            values = panel.filter(relation=relation, seeds=kind)["wasserstein"].to_numpy()
            names.append(f"{relation.replace('_', ' ')}, {kind}")
            axis.text(0.99, y, f"{len(values)}", fontsize=SMALL, ha="right", va="center", color=GREY,
                      transform=axis.get_yaxis_transform())  # fmt: skip
            colour, height = COLOURS[RELATIONS.index(relation)], y + rng.uniform(-0.25, 0.25, len(values))
            axis.scatter(values, height, s=3, color=colour, linewidth=0, alpha=0.5)
            if len(values) >= FEWEST:
                low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
                axis.plot([low, high], [y, y], color="black", linewidth=1.2)
                axis.plot(middle, y, "|", color="black", markersize=8)
        tell(axis, f"n = {panel['run_id_a'].n_unique()} runs, pairs at the right", wide=32)
        axis.set_yticks(range(len(rows)), names if is_leftmost(axis, cells) else [""] * len(rows), fontsize=SMALL)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(left=0)
        axis.margins(x=0.2)
    return figure, table


def shape_nulls(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Total length of a run's bars, beside surrogates with as many distinct states (grey: 95 %), and the verdict."""
    table = concat_tables(named(files, "topology", "nulls.parquet"), "topology.nulls")
    shown = table.with_columns(pl.col("dimension").cast(pl.String), pl.col("null").cast(pl.String))
    dimensions = shown["dimension"].unique(maintain_order=True).to_list()
    figure, cells = facets(shown, xlabel="length of bars / largest", sharex=True, letters=24)
    for (embedder, network), axis in cells.items():
        panel = shown.filter(embedder=embedder, network=network)
        first = panel.row(0, named=True)
        tell(axis, f"n = {first['runs']} runs, {first['prompts']} prompts", wide=24)
        if first["reason"]:
            empty(axis, first["reason"])
            continue
        names = []
        for y, (dimension, null) in enumerate((d, n) for d in dimensions for n in SURROGATES):
            row = panel.row(by_predicate=(pl.col("dimension") == dimension) & (pl.col("null") == null), named=True)
            same = panel.filter(dimension=dimension)
            most = same.select(pl.max_horizontal("statistic", "null_high").max()).item() or 1
            keys = ("null_low", "null_median", "null_high", "statistic")
            low, middle, high, value = (row[key] / most for key in keys)
            style = {"color": GREY, "linewidth": 4, "alpha": 0.4, "solid_capstyle": "butt"}
            axis.plot([low, high], [y, y], label="95 % of surrogates", **style)
            axis.plot(middle, y, "|", color=GREY, markersize=6)
            axis.plot(value, y, "o", color=COLOURS[0], markersize=3.5, label="observed")
            names.append(f"{dimension}, {null}: p = {row['p_holm']:.2g}")
            if null == SURROGATES[-1]:
                tell(axis, f"{dimension}: {row['verdict']}", wide=24)
        axis.set_yticks(range(len(names)), names, fontsize=SMALL)
        axis.set_ylim(len(names) - 0.5, -0.5)
    legend(cells)
    return figure, table
