"""Figures of the stage `drift`."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.style import COLOURS, Files, facets, named, note, write_counts

NULL = "#666666"
FEWEST = 8  # runs below which quartiles are not drawn


def drift_curves(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Cosine distance to the first state: median and quartiles over n runs. Grey: 95 % of medians of shuffled states.

    Runs that ended in a loop are continued. Fewer than FEWEST runs have no quartiles. p: ordered in time, by Holm.
    """
    curves = drift_quantiles(files)
    figure, cells = facets(curves, sharex=True, sharey="row")
    for (embedder, network), axis in cells.items():
        line = curves.filter(pl.col("control").cast(pl.String) == "observed", embedder=embedder, network=network)
        x, low, high, n = line.select("sequence_number", "q25", "q75", "runs")
        axis.plot(x, line["q50"], color=COLOURS[0], label="observed")
        axis.fill_between(x, low, high, where=n >= FEWEST, color=COLOURS[0], alpha=0.2, linewidth=0)
        draw_null(files, "ordered", axis, embedder, network)
        write_counts(axis, x, n)
        axis.set_ylabel("cosine distance")
        axis.set_xlabel("sequence number")
    next(iter(cells.values())).legend()
    return figure, curves


def drift_walks(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Euclidean distance to the first state: median over n runs. Grey: 95 % of medians of walks.

    The walks are of increments drawn from the observed ones. p: further or less far than a walk, by Holm.
    """
    bands = concat_tables(named(files, "drift", "bands.parquet"), "drift.bands")
    bands = bands.filter(pl.col("claim").cast(pl.String) == "walk")
    if bands.is_empty():
        return note("No run has enough states for a walk."), bands
    figure, cells = facets(bands, sharex=True, sharey="row")
    for (embedder, network), axis in cells.items():
        line = bands.filter(embedder=embedder, network=network)
        axis.plot(line["sequence_number"], line["observed"], color=COLOURS[0], label="observed")
        draw_null(files, "walk", axis, embedder, network)
        write_counts(axis, line["sequence_number"], line["runs"])
        axis.set_ylabel("Euclidean distance")
        axis.set_xlabel("sequence number")
    next(iter(cells.values())).legend()
    return figure, bands


def draw_null(files: Files, claim: str, axis: Axes, embedder: str, network: str) -> None:
    """The null's band and median in grey; the p-value of the claim in the axis's title."""
    panel = [pl.col("claim").cast(pl.String) == claim, pl.col("embedder") == embedder, pl.col("network") == network]
    band = concat_tables(named(files, "drift", "bands.parquet"), "drift.bands").filter(panel)
    test = concat_tables(named(files, "drift", "nulls.parquet"), "drift.nulls").filter(panel)
    x, low, median, high = band.select("sequence_number", "low", "median", "high")
    axis.fill_between(x, low, high, color=NULL, alpha=0.25, linewidth=0)
    axis.plot(x, median, color=NULL, linestyle="--", label="shuffled" if claim == "ordered" else "walk")
    for p in test["p_holm"].drop_nulls():
        axis.set_title(f"{axis.get_title()}: p = {p:.2g}", fontsize=7)


def drift_quantiles(files: Files) -> pl.DataFrame:
    """Quartiles over runs of the cosine distance to the first state: columns q25, q50, q75, runs."""
    table = concat_tables(named(files, "drift", "drift.parquet"), "drift").drop_nulls("cosine_distance")
    keys = ["embedder", "network", "control", "sequence_number"]
    quantiles = [pl.col("cosine_distance").quantile(q / 100, "linear").alias(f"q{q}") for q in (25, 50, 75)]
    return table.group_by(keys).agg(*quantiles, pl.len().alias("runs")).sort(keys)


def paper_table(files: Files) -> pl.DataFrame:
    """Cosine distance of the last states to the first, observed and shuffled: median and quartiles over runs."""
    keys = ["embedder", "network", "control"]
    quantiles = drift_quantiles(files).with_columns(pl.col("control").cast(pl.String))
    return quantiles.group_by(keys, maintain_order=True).last().sort(keys)
