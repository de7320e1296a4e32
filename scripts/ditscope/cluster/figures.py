"""Figures of the stage `cluster`: where the clusters are, the moves between them, how far they can be trusted."""

import textwrap

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch, Rectangle

from ditscope.core.tables import concat_tables
from ditscope.style import (
    COLOURS,
    GREY,
    NARROW,
    NO_CLUSTER,
    SMALL,
    Files,
    across,
    by_page,
    colour_scale,
    empty,
    facets,
    is_leftmost,
    legend,
    named,
    note,
    page_width,
    short,
    tell,
)

UNKNOWN = {"facecolor": "#dddddd"}  # a row of a transition matrix: the cluster is seen, but no transition from it
UNSEEN = {"facecolor": "white", "hatch": "////", "edgecolor": "#bbbbbb"}
NEVER_LEFT = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 1.2}
MEANINGS = [
    Patch(label="never left", **NEVER_LEFT),
    Patch(label="seen, no transition from it", **UNKNOWN),
    Patch(label="never seen in this network", **UNSEEN),
]
STATE = ["embedder", "network", "run_id", "sequence_number"]
OUTLIER = -1
DOTS = {"s": 4, "linewidth": 0, "rasterized": True}  # an SVG of thousands of marks is megabytes
SHOWN = 8  # largest clusters, told apart in figures; the rest is one group
COLOUR_OF = {**dict(enumerate((*COLOURS[:7], "#882255"))), SHOWN: "#888888", OUTLIER: NO_CLUSTER}
CAPTION = 24  # letters of a medoid's caption
MARKS = {SHOWN: "+", OUTLIER: "x"}  # of labels that have no number of their own
COLOURINGS = ("cluster", "network", "run", "time")


def table_of(files: Files, stem: str) -> pl.DataFrame:
    """A table of the stage."""
    name = "clusters" if stem == "clusters" else f"clusters.{stem}"
    return concat_tables(named(files, "cluster", f"{stem}.parquet"), name)


def group_of(name: str = "label") -> pl.Expr:
    """A label, SHOWN for all but the largest clusters."""
    return pl.col(name).clip(upper_bound=SHOWN).alias(name)


def names_of(files: Files) -> dict[str, dict[int, str]]:
    """What each embedder's labels are called: by the caption of the cluster's medoid, after its number."""
    medoids = table_of(files, "medoids").sort("embedder", "label")
    by_embedder: dict[str, dict[int, str]] = {}
    for embedder, label, text in medoids.select("embedder", "label", "medoid_text").rows():
        names = by_embedder.setdefault(embedder, {OUTLIER: "outliers  x"})
        if label < SHOWN:
            names[label] = f"{short(text or 'without caption', CAPTION)}  {label}"
        else:
            names[SHOWN] = f"{label - SHOWN + 1} smaller clusters  +"
    return by_embedder


def name_rows(axis: Axes, labels: list[int], names: dict[int, str], counts: dict[int, str] | None = None) -> None:
    """The clusters' names beside the rows of an axis, the first on top."""
    texts = [names.get(label, str(label)) + (f" ({counts[label]})" if counts else "") for label in labels]
    axis.set_yticks(range(len(labels)), texts, fontsize=SMALL, parse_math=False)
    axis.set_ylim(len(labels) - 0.5, -0.5)


def labels_in(*columns: pl.Series) -> list[int]:
    """The labels in columns: clusters in order, outliers last."""
    labels = sorted({int(x) for column in columns for x in column})
    return [x for x in labels if x != OUTLIER] + [x for x in labels if x == OUTLIER]


def cluster_map(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """t-SNE of the states of each embedder, coloured by cluster (outliers grey), network, run and time."""
    table = labelled_map(files)
    if table.is_empty():
        return note("Too few states for a map."), table
    colourings = pl.DataFrame({"colour": COLOURINGS})
    panels = table.select("embedder", "degenerate").unique(maintain_order=True).join(colourings, how="cross")
    panels = panels.with_columns(pl.when(colour=COLOURINGS[0]).then("degenerate"))  # told once per row
    figure, cells = facets(panels, by=("embedder", "colour"), most=(4, 4), height=1.6)
    networks = table["network"].unique(maintain_order=True).to_list()
    for (embedder, colouring), axis in cells.items():
        states = table.filter(embedder=embedder).sample(fraction=1, shuffle=True, seed=0)  # none always on top
        axis.set(xticks=[], yticks=[])
        if colouring == "cluster":
            draw_clusters(axis, states)
        elif colouring == "time":
            image = axis.scatter(states["x"], states["y"], c=states["position"], **DOTS)
            colour_scale(axis, image, "position")
            tell(axis, f"n = {states.height} states")
        elif colouring == "network":
            for i, network in enumerate(networks):
                part = states.filter(network=network)
                axis.scatter(part["x"], part["y"], color=COLOURS[i % 8], label=short(network, 30), **DOTS)
            tell(axis, f"n = {states['network'].n_unique()} networks")
        else:
            number = states.select(pl.struct("network", "run_id").rank("dense")).to_series().to_numpy()
            axis.scatter(states["x"], states["y"], c=colormaps["hsv"]((number * 0.618) % 1), **DOTS)
            tell(axis, f"n = {number.max()} runs")
    legend(cells, markerscale=2)
    return figure, table


def draw_clusters(axis: Axes, states: pl.DataFrame) -> None:
    """States by cluster: the largest numbered, in colours."""
    groups = states.with_columns(group_of().fill_null(OUTLIER))
    for label in sorted(groups["label"].unique()):
        part = groups.filter(label=label)
        axis.scatter(part["x"], part["y"], color=COLOUR_OF[label], **DOTS)
        if 0 <= label < SHOWN:
            place = part["x"].median(), part["y"].median()
            box = {"boxstyle": "circle,pad=0.15", "color": "white", "alpha": 0.7, "linewidth": 0}
            axis.annotate(f"{label}", place, fontsize=7, weight="bold", ha="center", va="center", bbox=box)
    inside = states.filter(pl.col("label") != OUTLIER)
    share, count = 1 - inside.height / states.height, inside["label"].n_unique()
    shown = f" ({SHOWN} in colour)" if count > SHOWN else ""
    tell(axis, f"{count} clusters{shown}, {share:.0%} outliers")


def labelled_map(files: Files) -> pl.DataFrame:
    """The t-SNE points that have coordinates, each with its cluster label and text."""
    points, labels = table_of(files, "map"), table_of(files, "clusters")
    joined = points.join(labels.select(*STATE, "label", "text"), on=STATE, how="left", maintain_order="left")
    return joined.drop_nulls(["x", "y"])


def cluster_transitions(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Transition probabilities between clusters, a matrix per embedder and network, with the counts in its cells.

    Rows are named by the caption of the medoid, once for all networks. A cluster that is never seen in the network is
    hatched; one that is seen, but of which no transition is known, is grey; one that is never left has a frame.
    """
    table, names = table_of(files, "transitions"), names_of(files)
    seen = table_of(files, "clusters").drop_nulls("label").with_columns(group_of())
    if table.is_empty():
        return note("No transitions: too few states were clustered."), table
    grouped = table.with_columns(group_of("source"), group_of("target"))
    grouped = grouped.group_by("embedder", "network", "source", "target").agg(pl.col("count").sum())
    figure, cells = facets(table, most=(4, 3), height=1.6, ylabel="from", xlabel="to")
    for (embedder, network), axis in cells.items():
        labels = labels_in(seen.filter(embedder=embedder)["label"])
        transitions = grouped.filter(embedder=embedder, network=network)
        here = set(seen.filter(embedder=embedder, network=network)["label"])
        counts = np.zeros((len(labels), len(labels)), int)
        for source, target, count in transitions.select("source", "target", "count").rows():
            counts[labels.index(source), labels.index(target)] = count
        draw_transitions(axis, counts, [label in here for label in labels])
        name_rows(axis, labels, names.get(embedder, {}) if is_leftmost(axis, cells) else MARKS)
        axis.set_xticks(range(len(labels)), [MARKS.get(label, str(label)) for label in labels], fontsize=SMALL)
        runs = seen.filter(embedder=embedder, network=network)["run_id"].n_unique()
        tell(axis, f"n = {counts.sum()} transitions, {runs} runs")
    for page, axes in by_page(cells).items():
        page.colorbar(axes[-1].images[0], ax=axes, label="probability", shrink=0.5, pad=0.01)
        page.legend(handles=MEANINGS, loc="outside upper left", ncols=across(2.3, 3), fontsize=SMALL)
    return figure, table


def draw_transitions(axis: Axes, counts: np.ndarray, seen: list[bool]) -> None:
    """A transition matrix (labels, labels) with its counts; rows without any are marked by whether they are seen."""
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    axis.imshow(share, vmin=0, vmax=1, aspect="auto", cmap="Blues")
    for (i, j), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[i, j] > 0.6 else "black"
            axis.text(j, i, f"{count}", ha="center", va="center", fontsize=SMALL, color=colour)
    for i, row in enumerate(counts):
        if not row.any():
            axis.add_patch(Rectangle((-0.5, i - 0.5), len(counts), 1, linewidth=0, **(UNKNOWN if seen[i] else UNSEEN)))
        elif row[i] == row.sum():
            axis.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, **NEVER_LEFT))


def label_phases(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Share of each cluster among the states in the beginning, middle and end of trajectories."""
    table, names = table_of(files, "label_phases"), names_of(files)
    if table.is_empty():
        return note("No labels: too few states were clustered."), table
    phases = table["phase"].dtype.categories.to_list()
    grouped = table.with_columns(group_of(), pl.col("phase").cast(pl.String))
    grouped = grouped.group_by("embedder", "network", "phase", "label").agg(pl.col("states", "share").sum())
    figure, cells = facets(table, most=(4, 3), height=1.6)
    for (embedder, network), axis in cells.items():
        panel = grouped.filter(embedder=embedder, network=network)
        labels = labels_in(grouped.filter(embedder=embedder)["label"])
        share = np.zeros((len(labels), len(phases)))
        for phase, label, value in panel.select("phase", "label", "share").rows():
            share[labels.index(label), phases.index(phase)] = value
        axis.imshow(share, vmin=0, vmax=1, aspect="auto", cmap="Blues")
        for (i, j), value in np.ndenumerate(share):
            text = f"{value:.0%}" if value else "\u2013"
            axis.text(j, i, text, ha="center", va="center", fontsize=SMALL, color="white" if value > 0.6 else "black")
        states = dict(panel.group_by("phase").agg(pl.col("states").sum()).rows())
        axis.set_xticks(range(len(phases)), [f"{phase}\nn = {states.get(phase, 0)}" for phase in phases])
        name_rows(axis, labels, names.get(embedder, {}) if is_leftmost(axis, cells) else MARKS)
    return figure, table


def height_of(table: pl.DataFrame) -> float:
    """Inches of an axis with a row per network, whose name takes two lines, or three where the page is narrow."""
    return 0.4 + (0.3 if page_width() > NARROW else 0.45) * table["network"].n_unique()


def name_networks(axis: Axes, table: pl.DataFrame, networks: list[str]) -> None:
    """Networks beside the rows of an axis, with their number of rows, and the word where they are degenerate."""
    poor = {n: table.filter(network=n)["degenerate"][0] is not None for n in networks}
    count = {n: table.filter(network=n).height for n in networks}
    unit = "n" if "run_id" in table.columns else ""
    texts = [
        textwrap.fill(short(n, 44), 26)
        + (f" ({unit} = {count[n]})" if unit else "")
        + ("\ndegenerate" if poor[n] else "")
        for n in networks
    ]
    axis.set_yticks(range(len(networks)), texts, fontsize=SMALL, parse_math=False)
    axis.set_ylim(len(networks) - 0.4, -0.6)


def outliers(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Share of the states in no cluster, by embedder and network, with the numbers of states and clusters."""
    table = table_of(files, "outliers")
    if table.is_empty():
        return note("No generated states."), table
    figure, cells = facets(
        table, by=("embedder",), most=(4, 2), height=height_of(table), xlabel="share of states in no cluster"
    )
    for (embedder,), axis in cells.items():
        panel = table.filter(embedder=embedder)
        networks = panel["network"].to_list()
        for y, row in enumerate(panel.iter_rows(named=True)):
            share = row["outliers_share"]
            axis.barh(y, share or 0, color=GREY, height=0.6)
            text = row["reason"] or f"{row['clusters']} clusters, n = {row['states']}"
            axis.text((share or 0) + 0.02, y, text, fontsize=SMALL, va="center", parse_math=False)
        name_networks(axis, panel, networks)
        axis.set_xlim(0, 1)
    return figure, table


def agreement(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Agreement of labellings (adjusted Rand index, outliers kept), beside permutations of whole prompts (grey)."""
    table = table_of(files, "agreement")
    if table.is_empty():
        return note("One embedder and one network: nothing to compare."), table
    shown = table.filter(outliers="kept").with_columns(
        pl.when(between="embedders").then("network_a").otherwise("embedder_a").alias("within"),
        *(pl.when(between="embedders").then(f"embedder_{s}").otherwise(f"network_{s}").alias(s) for s in "ab"),
    )
    most = shown.filter(pl.col("ari").is_not_null()).group_by("within").len()["len"].max() or 1
    figure, cells = facets(
        shown,
        by=("within",),
        most=(4, 2),
        height=1.0 + 0.24 * most,
        xlabel="adjusted Rand index",
        sharex=True,
        letters=38,
    )
    for (within,), axis in cells.items():
        pairs = shown.filter(within=within).sort("a", "b")
        panel = pairs.filter(pl.col("ari").is_not_null())
        if panel.is_empty():
            empty(axis, pairs["reason"][0])
            continue
        for y, row in enumerate(panel.iter_rows(named=True)):
            draw_agreement(axis, y, row)
        texts = [f"{short(a, 34)}\n{short(b, 34)}" for a, b in panel.select("a", "b").rows()]
        axis.set_yticks(range(len(texts)), texts, fontsize=SMALL, parse_math=False)
        axis.set_ylim(len(texts) - 0.5, -0.5)
        tell(axis, f"between {panel['between'][0]}, n = {panel['prompts'].max()} prompts", wide=38)
        if len(panel) < len(pairs):
            tell(axis, f"left out: {len(pairs) - len(panel)} pairs without common states", wide=38)
        axis.set_xlim(-0.25, 1.05)
    legend(cells)
    return figure, table


def draw_agreement(axis: Axes, y: int, row: dict) -> None:
    """One pair of labellings: its score, and up to where 95 % of permutations are; filled where p < 0.05 (Holm)."""
    if row["ari_null_high"] is not None:
        ends = [row["ari_null_median"], row["ari_null_high"]]
        axis.plot(
            ends,
            [y, y],
            color=GREY,
            linewidth=3,
            alpha=0.5,
            solid_capstyle="butt",
            label="permutations: median to 95 %",
        )
    p = row["ari_p_holm"]
    colour = COLOURS[1] if row["degenerate"] else COLOURS[0]
    kinds = {True: "p < 0.05 (Holm)", False: "p of 0.05 or more", None: "no permutation possible"}
    told = None if p is None else p < 0.05
    mark = {True: ("o", colour), False: ("o", "white"), None: ("x", colour)}[told]
    label = "degenerate" if row["degenerate"] else kinds[told]
    axis.plot(row["ari"], y, mark[0], markersize=4, markeredgecolor=colour, markerfacecolor=mark[1], label=label)


def cluster_stability(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """How well each cluster comes again from half of the prompts: Jaccard index, median and 95 % of the draws."""
    table, whole, names = table_of(files, "medoids"), table_of(files, "stability"), names_of(files)
    if table.is_empty():
        return note("No clusters."), table
    figure, cells = facets(whole, by=("embedder",), most=(4, 2), height=1.9, xlabel="Jaccard index", sharex=True)
    for (embedder,), axis in cells.items():
        panel = table.filter(pl.col("label") < SHOWN, embedder=embedder).sort("label")
        row = whole.row(by_predicate=pl.col("embedder") == embedder, named=True)
        size = f"n = {row['states']} states, {row['prompts']} prompts, {row['clusters']} clusters"
        tell(
            axis,
            size,
            row["reason"] or f"ARI {row['ari']:.2f} ({row['low']:.2f} to {row['high']:.2f}), {row['draws']} draws",
        )
        if panel["jaccard"].count() == 0:
            empty(axis, "no clusters" if panel.is_empty() else row["reason"] or "in no draw")
            continue
        labels = panel["label"].to_list()
        for y, cluster in enumerate(panel.iter_rows(named=True)):
            if cluster["jaccard"] is not None:
                axis.plot([cluster["low"], cluster["high"]], [y, y], color=COLOUR_OF[cluster["label"]], linewidth=1.5)
                axis.plot(cluster["jaccard"], y, "o", color=COLOUR_OF[cluster["label"]], markersize=4)
        states = {x: f"{n}" for x, n in panel.select("label", "states").rows()}
        name_rows(axis, labels, names.get(embedder, {}), states)
        axis.set_xlim(-0.02, 1.02)
    return figure, table


def clusters_table(files: Files) -> pl.DataFrame:
    """Clusters, outliers, longest stays and returns by embedder and network."""
    keys = ["embedder", "network"]
    shares = concat_tables(named(files, "cluster", "outliers.parquet"), "clusters.outliers")
    stays = concat_tables(named(files, "cluster", "longest_runs.parquet"), "clusters.longest_runs")
    returns = concat_tables(named(files, "cluster", "returns.parquet"), "clusters.returns")
    longest = stays.filter(pl.col("scope").cast(pl.String) == "anytime").group_by(keys)
    came_back = (pl.col("returns") > 0).mean().alias("share_of_runs_that_return")
    return (
        shares.select(*keys, "states", "clusters", "outliers_share", "degenerate")
        .join(longest.agg(pl.col("length").median().alias("median_longest_stay")), on=keys, how="left")
        .join(returns.group_by(keys).agg(came_back), on=keys, how="left")
        .sort(keys)
    )
