"""Figures of how long trajectories stay in a cluster, and whether they come back."""

import numpy as np
import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.cluster.figures import (
    COLOUR_OF,
    group_of,
    height_of,
    labels_in,
    name_networks,
    name_rows,
    names_of,
    table_of,
)
from ditscope.style import COLOURS, NO_CLUSTER, SMALL, Files, across, facets, legend, note, tell, write_counts

STAYS = ("starts outside all clusters", "never left", "left, never back", "back once", "back more often")
STAY_COLOURS = (NO_CLUSTER, COLOURS[0], COLOURS[1], COLOURS[4], COLOURS[2])


def run_lengths(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """How long stays in each cluster last: areas are numbers of stays, those that were cut are hollow."""
    table, names = table_of(files, "run_lengths"), names_of(files)
    if table.is_empty():
        return note("No runs: too few states were clustered."), table
    grouped = table.with_columns(group_of(), (pl.col("entry_seen") & pl.col("exit_seen")).alias("whole"))
    counts = grouped.group_by("embedder", "network", "label", "length", "whole").agg(pl.len().alias("stays"))
    figure, cells = facets(table, most=(4, 2), wrap=True, height=1.7, xlabel="length of the stay / states", whole=True)
    for (embedder, network), axis in cells.items():
        panel = counts.filter(embedder=embedder, network=network).sort("label", "length")
        labels = labels_in(panel["label"])
        for whole, part in ((False, panel.filter(~pl.col("whole"))), (True, panel.filter("whole"))):
            y = [labels.index(label) + (-0.12 if whole else 0.12) for label in part["label"]]
            colours = [COLOUR_OF[label] for label in part["label"]]
            fill = {"facecolors": colours} if whole else {"facecolors": "none", "edgecolors": colours}
            axis.scatter(
                part["length"], y, s=6 * part["stays"].to_numpy() ** 0.8, linewidth=0.7 * (not whole), alpha=0.8, **fill
            )
        stays = dict(panel.group_by("label").agg(pl.col("stays").sum()).rows())
        name_rows(axis, labels, names.get(embedder, {}), {label: f"{stays[label]}" for label in labels})
        cut = panel.filter(~pl.col("whole"))["stays"].sum()
        tell(axis, f"n = {panel['stays'].sum()} stays, {cut} cut (hollow)")
        axis.set_xlim(0, panel["length"].max() + 1)
    return figure, table


def dwell_times(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Share of stays in a cluster that last longer than so many states (Kaplan-Meier), and how many were followed.

    Band: 95 % interval over prompts, from 8 prompts on.
    """
    table = table_of(files, "dwell_times")
    if table.is_empty():
        return note("No stay in a cluster was followed over a state."), table
    figure, cells = facets(
        table, xlabel="stay / states", ylabel="share that stays", sharex=True, sharey="all", whole=True
    )
    for (embedder, network), axis in cells.items():
        stays = table.filter(embedder=embedder, network=network)
        axis.step([0, *stays["duration"]], [1, *stays["survival"]], where="post", color=COLOURS[0])
        low, high = (stays[name].cast(pl.Float64).to_numpy() for name in ("low", "high"))
        axis.fill_between(stays["duration"], low, high, step="post", color=COLOURS[0], alpha=0.2, linewidth=0,
                          label="95 % interval over prompts")  # fmt: skip
        cut = stays.filter(pl.col("censored") > 0)
        axis.plot(cut["duration"], cut["survival"], "|", color=COLOURS[0], markersize=4, label="stays that were cut")
        write_counts(axis, stays["duration"], stays["at_risk"], table["duration"].max())
        tell(axis, f"{stays['prompts'].max()} prompts, {stays['runs'].max()} runs")
        axis.set_ylim(0, 1.15)
    legend(cells)
    return figure, table


def longest_runs(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Trajectories in order of their longest stay in one cluster, from the start and anytime; cut ones are hollow."""
    table = table_of(files, "longest_runs")
    if table.is_empty():
        return note("No runs: too few states were clustered."), table
    figure, cells = facets(table, xlabel="rank of the run", ylabel="longest stay / states", sharey="row", whole=True)
    for (embedder, network), axis in cells.items():
        panel = table.filter(embedder=embedder, network=network).sort("rank")
        for scope, colour in (("anytime", COLOURS[0]), ("from_start", COLOURS[1])):
            part = panel.filter(pl.col("scope").cast(pl.String) == scope)
            axis.step(
                part["rank"], part["length"], where="mid", color=colour, linewidth=0.8, label=scope.replace("_", " ")
            )
            for cut, face in ((False, colour), (True, "white")):
                marks = part.filter(pl.col("exit_seen").fill_null(True) != cut)
                style = {"markerfacecolor": face, "markeredgecolor": colour, "markersize": 3, "markeredgewidth": 0.7}
                axis.plot(marks["rank"], marks["length"], "o", **style)
        anytime = panel.filter(pl.col("scope").cast(pl.String) == "anytime")
        tell(axis, f"n = {anytime.height} runs; median {anytime['length'].median():g} states")
    for axis in cells.values():
        axis.set_ylim(bottom=-0.5)
    legend(cells)
    return figure, table


def returns(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """How many trajectories never left the cluster of their first state, left it for good, or came back."""
    table = table_of(files, "returns")
    if table.is_empty():
        return note("No labels: too few states were clustered."), table
    came = pl.col("returns").clip(upper_bound=2)
    kind = pl.when(came.is_null()).then(0).when(~pl.col("left")).then(1).otherwise(came + 2)
    counts = table.with_columns(kind.alias("kind"))
    figure, cells = facets(table, by=("embedder",), most=(4, 2), height=height_of(table), xlabel="share of the runs")
    for (embedder,), axis in cells.items():
        panel = counts.filter(embedder=embedder)
        networks = panel["network"].unique(maintain_order=True).to_list()
        for y, network in enumerate(networks):
            runs = panel.filter(network=network)
            counts_of = [(runs["kind"] == k).sum() for k in range(len(STAYS))]
            for k, (start, many) in enumerate(zip(np.cumsum([0, *counts_of]), counts_of, strict=False)):
                axis.barh(y, many / runs.height, left=start / runs.height, color=STAY_COLOURS[k], label=STAYS[k])
                if many / runs.height > 0.06:
                    ink = "white" if STAY_COLOURS[k] in (COLOURS[0], COLOURS[1], COLOURS[2]) else "black"
                    middle = (start + many / 2) / runs.height
                    axis.text(middle, y, f"{many}", fontsize=SMALL, ha="center", va="center", color=ink)
        name_networks(axis, panel, networks)
        axis.set_xlim(0, 1)
    legend(cells, ncols=across(2.3, 3))
    return figure, table
