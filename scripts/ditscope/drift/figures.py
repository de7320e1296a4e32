"""Figures of the stage `drift`."""

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.style import COLOURS, Files, facets, named


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


def drift_quantiles(files: Files) -> pl.DataFrame:
    """Quartiles over runs of the cosine distance to the first state: columns q25, q50, q75, runs."""
    table = concat_tables(named(files, "drift", "drift.parquet"), "drift").drop_nulls("cosine_distance")
    keys = ["embedder", "network", "control", "sequence_number"]
    quantiles = [pl.col("cosine_distance").quantile(q / 100, "linear").alias(f"q{q}") for q in (25, 50, 75)]
    return table.group_by(keys).agg(*quantiles, pl.len().alias("runs")).sort(keys)
