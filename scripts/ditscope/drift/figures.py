"""Figures of the stage `drift`."""

from collections.abc import Iterator
from itertools import cycle

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.drift.tables import PROMPT
from ditscope.style import COLOURS, Files, facets, grid, named, note, write_counts

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


# Claims about groups of runs ------------------------------------------------------------------------------------------

KINDS = {"fixed": COLOURS[0], "derived": COLOURS[1]}  # of seeds: never pooled


def drift_memory(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Memory of the prompt by position; grey: 95 % of it with prompts permuted among runs."""
    table = texts(concat_tables(named(files, "drift", "memory.parquet"), "drift.memory"), "seeds")
    if table.is_empty():
        return note(reasons(files, "memory")), table
    figure, cells = facets(table, sharex=True, sharey=True)
    for axis, kind, line in lines(table, cells):
        x = line["sequence_number"]
        axis.fill_between(x, line["null_low"], line["null_high"], color=NULL, alpha=0.25, linewidth=0)
        draw_interval(axis, x, line["memory"], line["low"], line["high"], kind)
        write_counts(axis, x, line["prompts"])
    finish(files, cells, ["memory"], "memory of the prompt", "sequence number")
    return figure, table


def drift_displacement(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Mean squared displacement by lag, beside walks of the observed increments and shuffled states."""
    table = texts(concat_tables(named(files, "drift", "displacement.parquet"), "drift.displacement"), "seeds")
    if table.is_empty():
        return note(reasons(files, "walk")), table
    figure, cells = facets(table, sharex=True)
    for axis, kind, line in lines(table, cells):
        for null, colour in (("walk", NULL), ("plateau", COLOURS[5])):
            x, low, middle, high = line.select("lag", f"{null}_low", f"{null}_median", f"{null}_high")
            axis.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
            axis.plot(x, middle, color=colour, linestyle="--", label="walk" if null == "walk" else "shuffled")
        draw_interval(axis, line["lag"], line["displacement"], line["low"], line["high"], kind)
        axis.set_ylim(0, 2.5 * max(line["displacement"].max(), line["plateau_high"].max()) or 1)
        write_counts(axis, line["lag"], line["prompts"])
    finish(files, cells, ["walk", "plateau"], "squared displacement", "lag / states")
    return figure, table


def drift_divergence(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Distance of twins by position, on a logarithmic axis, up to where it saturates; dashed: strangers."""
    table = texts(concat_tables(named(files, "drift", "divergence.parquet"), "drift.divergence"), "seeds")
    if table.is_empty() or not (table["distance"] > 0).any():
        return note(reasons(files, "rate")), table
    figure, cells = facets(table, sharex=True)
    for axis, kind, line in lines(table.filter(pl.col("distance") > 0), cells):
        x = line["sequence_number"]
        axis.plot(x, line["stranger"], color=NULL, linestyle="--", label="strangers")
        draw_interval(axis, x, line["distance"], line["low"].clip(1e-6), line["high"], kind)
        for place in x.filter(line["saturated"])[:1]:
            axis.axvline(place, color=KINDS[kind], linestyle=":", label="saturated")
        axis.set_yscale("log")
        write_counts(axis, x, line["prompts"])
    finish(files, cells, ["rate"], "distance of twins", "sequence number")
    return figure, table


def drift_jumps(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Size over threshold of the jumps of each run, and of the largest step of runs without, by place.

    Title: runs with jumps that are more than a walk makes (p_walk up to 0.05).
    """
    table = concat_tables(named(files, "drift", "jumps.parquet"), "drift.jumps")
    shown = table.drop_nulls("size")
    if shown.is_empty():
        return note(
            f"No run has steps to test: {', '.join(table['reason'].unique().sort()) or 'all have gaps'}."
        ), table
    figure, cells = facets(shown, sharex=True, sharey=True)
    for (embedder, network), axis in cells.items():
        of_network = shown.filter(embedder=embedder, network=network)
        axis.axhline(1, color=NULL, linestyle="--")
        sudden = pl.col("jump") & (pl.col("p_walk") <= 0.05)
        for kind, colour, label in (
            (sudden, COLOURS[1], "jump, and more than a walk"),
            (pl.col("jump") & ~sudden, COLOURS[4], "jump, as in a walk"),
            (~pl.col("jump"), NULL, "largest step of a run without"),
        ):
            points = of_network.filter(kind)
            axis.scatter(
                points["sequence_number"], points["size"] / points["threshold"], s=6, color=colour, label=label
            )
        runs, with_jump = of_network["run_id"].n_unique(), of_network.filter(sudden)["run_id"].n_unique()
        axis.set_title(f"{axis.get_title()}: {with_jump} of {runs} runs", fontsize=7)
        axis.set_ylabel("size / threshold")
        axis.set_xlabel("sequence number")
    next(iter(cells.values())).legend()
    return figure, table


def texts(table: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """A table with Enum columns as plain text."""
    return table.with_columns(pl.col(columns).cast(pl.String))


def lines(table: pl.DataFrame, cells: dict) -> Iterator[tuple[Axes, str, pl.DataFrame]]:
    """The axis, the kind of seeds, and the rows of each line of a figure of groups."""
    for (embedder, network), axis in cells.items():
        for kind in KINDS:
            line = table.filter(embedder=embedder, network=network, seeds=kind)
            if not line.is_empty():
                yield axis, kind, line


def draw_interval(axis: Axes, x: pl.Series, y: pl.Series, low: pl.Series, high: pl.Series, kind: str) -> None:
    """A line, with its interval where there is one, in the colour of a kind of seeds."""
    axis.plot(x, y, color=KINDS[kind], label=f"{kind} seeds", marker="." if len(y) < 3 else "")
    low, high = (end.cast(pl.Float64).fill_null(float("nan")) for end in (low, high))
    axis.fill_between(x, low, high, color=KINDS[kind], alpha=0.2, linewidth=0)


def finish(files: Files, cells: dict, claims: list[str], y: str, x: str) -> None:
    """Labels, a legend without doubled entries, and the p-values of the claims in the titles."""
    tests = texts(concat_tables(named(files, "drift", "claims.parquet"), "drift.claims"), "claim", "seeds")
    for (embedder, network), axis in cells.items():
        of_panel = tests.filter(pl.col("claim").is_in(claims), embedder=embedder, network=network).drop_nulls("p_holm")
        said = [f"{claim} p = {p:.2g}" for claim, p in of_panel.select("claim", "p_holm").rows()]
        axis.set_title("\n".join([axis.get_title(), *said]), fontsize=6)
        axis.set(xlabel=x, ylabel=y)
    drawn = {
        label: line for axis in cells.values() for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    next(iter(cells.values())).legend(drawn.values(), drawn.keys())


def reasons(files: Files, claim: str) -> str:
    """Why a claim is not made of any group."""
    tests = texts(concat_tables(named(files, "drift", "claims.parquet"), "drift.claims"), "claim").filter(claim=claim)
    return f"Nothing to show: {'; '.join(tests['reason'].drop_nulls().unique().sort()) or 'there are no runs'}."


# How long things last -------------------------------------------------------------------------------------------------


def attribute_survival(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Share of runs that are still as their prompt said, by the oracle (attributes) and the embedders.

    Dotted: the same of runs held against other prompts.
    """
    table = survival_table(files).filter(pl.col("against") == PROMPT)
    if table.is_empty():
        return note("No run can be held against its prompt: a single prompt, and no attributes are read."), table
    return draw_survival(table, "share as the prompt said"), table


def quantized_survival(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Share of runs of a quantized network that are still alike with their base's; dotted: runs of other seeds."""
    table = survival_table(files).filter(pl.col("against") != PROMPT)
    if table.is_empty():
        return note("No quantized network stands beside its base."), table
    return draw_survival(table, "share alike with base"), table


def quantized_difference(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """How much longer what runs began with lasts under quantization than in the base, with intervals over prompts.

    Grey: 95 % of what comes out with the signs of the prompts at random.
    """
    table = texts(concat_tables(named(files, "drift", "quantized.parquet"), "drift.quantized"), "by", "seeds")
    shown = table.drop_nulls("difference")
    if shown.is_empty():
        why = "; ".join(table["reason"].drop_nulls().unique().sort()) or "no quantized network stands beside its base"
        return note(f"Nothing to compare: {why}."), table
    pairs = shown.select("network", "base", "seeds").unique(maintain_order=True).rows()
    most = max(len(shown.filter(network=n, base=b, seeds=s)) for n, b, s in pairs)
    figure, axes = grid(1, len(pairs), width=max(4, 3.2 * len(pairs)), height=0.8 + 0.22 * most, sharex=True)
    for axis, (network, base, kind) in zip(axes[0], pairs, strict=True):
        mine = shown.filter(network=network, base=base, seeds=kind)
        place, (low, high) = range(len(mine)), (mine[end].to_numpy() for end in ("null_low", "null_high"))
        axis.barh(place, high - low, left=low, color=NULL, alpha=0.3)
        axis.hlines(place, mine["low"], mine["high"], color=KINDS[kind])
        axis.plot(mine["difference"], place, "o", color=KINDS[kind], markersize=3)
        axis.axvline(0, color=NULL, linewidth=0.6)
        axis.set_yticks(
            place, [f"{what} ({by}), n = {n}" for by, what, n in mine.select("by", "what", "prompts").rows()]
        )
        axis.set(title=f"{network} - {base}, {kind} seeds", xlabel="difference / states")
    return figure, table


def survival_table(files: Files) -> pl.DataFrame:
    """The table `drift.survival` as facets: `embedder` is the reader, `network` has what is compared."""
    table = texts(concat_tables(named(files, "drift", "survival.parquet"), "drift.survival"), "by", "seeds")
    alone = pl.col("against") == PROMPT
    what = pl.when(alone).then(pl.col("network")).otherwise(pl.format("{} beside {}", "network", "against"))
    return table.with_columns(pl.col("by").alias("embedder"), pl.format("{}, {} seeds", what, "seeds").alias("network"))


def draw_survival(table: pl.DataFrame, y: str) -> Canvas:
    """Curves of survival with their intervals; rows are readers, columns networks, lines what is read."""
    figure, cells = facets(table, sharex=True, sharey=True)
    for (reader, network), axis in cells.items():
        mine = table.filter(embedder=reader, network=network)
        for colour, line in zip(cycle(COLOURS), mine.partition_by("what", maintain_order=True), strict=False):
            low, high = (line[end].cast(pl.Float64).fill_null(float("nan")) for end in ("low", "high"))
            style = {"color": colour, "drawstyle": "steps-post"}
            axis.plot(line["position"], line["survival"], label=line["what"][0], **style)
            axis.fill_between(line["position"], low, high, color=colour, alpha=0.12, linewidth=0, step="post")
            axis.plot(line["position"], line["reference"], linestyle=":", linewidth=0.8, **style)
            cut = line.filter(pl.col("censored") > 0)
            axis.plot(cut["position"], cut["survival"], "|", color=colour, markersize=4)
        if len(mine):
            counts = mine.group_by("position").agg(pl.col("at_risk").max()).sort("position")
            write_counts(axis, counts["position"], counts["at_risk"])
            axis.legend(fontsize=5)
        axis.set(xlabel="position", ylabel=y, ylim=(0, 1.15))
    return figure


def lifetimes_table(files: Files) -> pl.DataFrame:
    """How long what prompts named lasts: share of runs in which nothing changed, and difference of quantized and base.

    `median` is the first position by which half of the runs have changed, null where fewer have.
    """
    keys = ["network", "seeds", "by", "what"]
    curves = texts(concat_tables(named(files, "drift", "survival.parquet"), "drift.survival"), "by", "seeds")
    pairs = texts(concat_tables(named(files, "drift", "quantized.parquet"), "drift.quantized"), "by", "seeds")
    ends = curves.filter(pl.col("against") == PROMPT).group_by(keys, maintain_order=True).agg(
        pl.col("runs", "left_out").first(),
        pl.col("position").filter(pl.col("survival") <= 0.5).min().alias("median"),
        pl.col("position", "survival", "low", "high").last(),
    )  # fmt: skip
    numbers = {name: f"difference_{name}" for name in ("low", "high", "p_holm")}
    compared = pairs.select(*keys, "base", "difference", *numbers).rename(numbers)
    return ends.join(compared, on=keys, how="left").sort(*keys, "base")
