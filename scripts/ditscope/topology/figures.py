"""Figures of the stage `topology`."""

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.style import COLOURS, Files, facets, named, note
from ditscope.topology.tables import HOMOLOGY


def persistence_diagrams(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Birth against death of every bar, coloured by homology dimension."""
    table = concat_tables(named(files, "topology", "diagrams.parquet"), "topology.diagrams")
    finite = table.filter(pl.col("death").is_not_null())
    if finite.is_empty():
        return note("No finite bars."), table
    figure, cells = facets(finite, height=2.2)
    for (embedder, network), axis in cells.items():
        diagram = finite.filter(embedder=embedder, network=network)
        top = diagram["death"].max() or 1.0
        axis.plot([0, top], [0, top], color=COLOURS[7], linewidth=0.8)
        for colour, dimension in zip(COLOURS, HOMOLOGY, strict=False):
            bars = diagram.filter(pl.col("dimension").cast(pl.String) == dimension)
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
        for x, dimension in enumerate(HOMOLOGY):
            values = shown.filter(pl.col("dimension").cast(pl.String) == dimension, embedder=embedder, network=network)[
                "entropy"
            ]
            axis.scatter(x + rng.uniform(-0.15, 0.15, len(values)), values, s=5, color=COLOURS[x], linewidth=0)
            if len(values):
                axis.plot([x - 0.25, x + 0.25], [values.median()] * 2, color="black", linewidth=1)
        axis.set_xticks(range(3), HOMOLOGY)
        axis.set_ylabel("entropy / nat")
    return figure, table
