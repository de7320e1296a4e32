"""Figures of the stage `embed`."""

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.embed.files import FEWEST_DISTINCT, by_embedder, degenerate_networks, distinct_of_runs, read_states
from ditscope.style import COLOURS, GREY, Files, facets, legend, tell


def distinct_states(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """How many states of each run differ, against how many there are; a network with too few is degenerate."""
    tables = [path for path in files["trajectories"] if path.suffix == ".parquet" and ".timing" not in path.name]
    states = read_states(files["embed"], tables)
    cells_of = degenerate_networks(states)
    runs = pl.concat(distinct_of_runs(part) for _, part in by_embedder(states))
    table = runs.join(cells_of, on=["embedder", "network"]).sort("embedder", "network", "run_id")
    figure, cells = facets(
        table, xlabel="states of the run", ylabel="distinct states", sharex=True, sharey="all", whole=True
    )
    top = table["states"].max()
    for (embedder, network), axis in cells.items():
        cell = table.filter(embedder=embedder, network=network)
        counts = cell.group_by("states", "distinct").len("runs").sort("states", "distinct")
        axis.plot([0, top], [0, top], color=GREY, linewidth=0.6, linestyle="--", label="all differ")
        axis.axhline(FEWEST_DISTINCT, color=COLOURS[1], linewidth=0.6, label="median needed")
        size = 8 * counts["runs"].to_numpy() ** 0.8
        axis.scatter(
            counts["states"], counts["distinct"], s=size, color=COLOURS[0], linewidth=0, alpha=0.7, label="runs"
        )
        cell = cells_of.row(by_predicate=(pl.col("embedder") == embedder) & (pl.col("network") == network), named=True)
        tell(axis, f"n = {cell['runs']} runs, median {cell['median_distinct']:g} of {cell['median_states']:g}")
    legend(cells)
    return figure, table
