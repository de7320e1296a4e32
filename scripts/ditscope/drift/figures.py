"""Figures of the stage `drift`: distances over runs, and how the steps are made."""

import textwrap

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from scipy import stats

from ditscope.core.tables import concat_tables
from ditscope.drift.tables import PROMPT, STEPS
from ditscope.style import (
    COLOURS,
    GREY,
    SMALL,
    Files,
    colour_scale,
    empty,
    facets,
    legend,
    named,
    note,
    short,
    tell,
    write_counts,
)

FEWEST = 8  # runs below which quartiles are not drawn
STEP = "step_cosine_distance"
QQ_RUNS = 40  # lines of one axis
QQ_DRAWS = 999  # normal samples of its band
KINDS = {"fixed": COLOURS[0], "derived": COLOURS[1]}  # of seeds: never pooled
MATRIX_NAMES = 12  # blocks of a similarity matrix that are named


def drift_curves(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Cosine distance to the first state: median and quartiles over n runs. Grey: 95 % of medians of shuffled states.

    Runs that ended in a loop are continued. Fewer than FEWEST runs have no quartiles. p: ordered in time, by Holm.
    """
    curves = drift_quantiles(files)
    figure, cells = facets(
        curves, xlabel="sequence number", ylabel="cosine distance", sharex=True, sharey="row", whole=True
    )  # fmt: skip
    span = curves["sequence_number"].max() - curves["sequence_number"].min()
    for (embedder, network), axis in cells.items():
        line = curves.filter(pl.col("control").cast(pl.String) == "observed", embedder=embedder, network=network)
        x, low, high, n = line.select("sequence_number", "q25", "q75", "runs")
        draw_median(axis, x, line["q50"], n, "observed: median, quartiles")
        axis.fill_between(x, low, high, where=n >= FEWEST, color=COLOURS[0], alpha=0.2, linewidth=0)
        draw_null(files, "ordered", axis, embedder, network, n.max() or 0)
        write_counts(axis, x, n, span)
        axis.margins(y=0.15)
    legend(cells)
    return figure, curves


def drift_walks(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Euclidean distance to the first state: median over n runs. Grey: 95 % of medians of walks.

    The walks are of increments drawn from the observed ones. p: further or less far than a walk, by Holm.
    """
    bands = concat_tables(named(files, "drift", "bands.parquet"), "drift.bands")
    bands = bands.filter(pl.col("claim").cast(pl.String) == "walk")
    if bands.is_empty():
        return note("No run has enough states for a walk."), bands
    figure, cells = facets(
        bands, xlabel="sequence number", ylabel="Euclidean distance", sharex=True, sharey="row", whole=True
    )  # fmt: skip
    span = bands["sequence_number"].max() - bands["sequence_number"].min()
    for (embedder, network), axis in cells.items():
        line = bands.filter(embedder=embedder, network=network)
        draw_median(axis, line["sequence_number"], line["observed"], line["runs"], "observed: median")
        draw_null(files, "walk", axis, embedder, network, line["runs"].max())
        write_counts(axis, line["sequence_number"], line["runs"], span)
        axis.margins(y=0.15)
    legend(cells)
    return figure, bands


def draw_median(axis: Axes, x: pl.Series, y: pl.Series, runs: pl.Series, label: str) -> None:
    """A line where FEWEST runs are left, points alone where fewer are."""
    enough = runs >= FEWEST
    axis.plot(x, np.where(enough, y, np.nan), color=COLOURS[0], label=label)
    few = {"color": COLOURS[0], "markersize": 2, "markerfacecolor": "white", "markeredgewidth": 0.6}
    if not enough.all():
        axis.plot(x.filter(~enough), y.filter(~enough), "o", label=f"of fewer than {FEWEST} runs", **few)


def draw_null(files: Files, claim: str, axis: Axes, embedder: str, network: str, runs: int) -> None:
    """The null's band and median in grey; the p-value of the claim, and the band's runs if not all, in the title."""
    panel = [pl.col("claim").cast(pl.String) == claim, pl.col("embedder") == embedder, pl.col("network") == network]
    band = concat_tables(named(files, "drift", "bands.parquet"), "drift.bands").filter(panel)
    test = concat_tables(named(files, "drift", "nulls.parquet"), "drift.nulls").filter(panel)
    x, low, median, high = band.select("sequence_number", "low", "median", "high")
    null = "shuffled" if claim == "ordered" else "walks"
    axis.fill_between(x, low, high, color=GREY, alpha=0.25, linewidth=0, label=f"{null}: 95 % of medians")
    axis.plot(x, median, color=GREY, linestyle="--", linewidth=1)
    for p, prompts, reason in test.select("p_holm", "prompts", "reason").rows():
        tell(axis, f"no test: {reason}" if p is None else f"p = {p:.2g}, {prompts} prompts")
    if len(band) and (drawn := band["runs"].max()) < runs:
        tell(axis, f"band of {drawn} runs")


def drift_quantiles(files: Files) -> pl.DataFrame:
    """Quartiles over runs of the cosine distance to the first state: columns q25, q50, q75, runs."""
    table = concat_tables(named(files, "drift", "drift.parquet"), "drift").drop_nulls("cosine_distance")
    keys = ["embedder", "network", "control", "sequence_number"]
    quantiles = [pl.col("cosine_distance").quantile(q / 100, "linear").alias(f"q{q}") for q in (25, 50, 75)]
    runs = pl.col("run_id").n_unique().alias("runs")  # shuffles of a run are no more runs
    return table.group_by(keys).agg(*quantiles, runs, pl.col("degenerate").first()).sort(keys)


def autoregression(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Lag-1 coefficient of the steps with its 95 % interval, observed and shuffled; ticks: single long runs."""
    table = concat_tables(named(files, "drift", "autoregression.parquet"), "drift.autoregression")
    single = concat_tables(named(files, "drift", "autoregression_runs.parquet"), "drift.autoregression_runs")
    figure, cells = facets(table, xlabel="coefficient", sharex=True)
    for (embedder, network), axis in cells.items():
        axis.axvline(0, color=GREY, linewidth=0.6)
        for number, (control, colour) in enumerate((("observed", COLOURS[0]), ("shuffled", GREY))):
            rows = table.filter(pl.col("control").cast(pl.String) == control, embedder=embedder, network=network)
            for row in rows.iter_rows(named=True):
                y = STEPS.index(row["measure"]) + 0.24 * number - 0.12
                if row["coefficient"] is None:
                    axis.text(0.02, y, row["reason"], fontsize=SMALL, va="center", color=colour, parse_math=False,
                              transform=axis.get_yaxis_transform())  # fmt: skip
                    continue
                axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.5)
                label = f"{control}, 95 % interval"
                axis.plot(row["coefficient"], y, "o", color=colour, markersize=3.5, label=label)
        runs = single.filter(embedder=embedder, network=network).drop_nulls("coefficient")
        places = [STEPS.index(measure) - 0.34 for measure in runs["measure"]]
        if len(runs):
            label = "single runs, 50 steps or more"
            axis.plot(runs["coefficient"], places, "|", color=COLOURS[1], markersize=4, label=label)
        first = table.filter(pl.col("control").cast(pl.String) == "observed", embedder=embedder, network=network)
        tell(axis, f"n = {first['runs'].max()} runs, {first['pairs'].max()} pairs of steps")
        axis.set(xlim=(-1.05, 1.05), ylim=(2.5, -0.6))
        axis.set_yticks(range(3), [name.removeprefix("step_").split("_")[0] for name in STEPS])
    legend(cells)
    return figure, table


def normal_quantiles(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Steps of each run, standardized, against normal quantiles: a line per run. Grey: 95 % of normal samples."""
    steps = concat_tables(named(files, "drift", "drift.parquet"), "drift")
    steps = steps.filter(pl.col("control").cast(pl.String) == "observed", ~pl.col("continued")).drop_nulls(STEP)
    tests = concat_tables(named(files, "drift", "normality.parquet"), "drift.normality")
    tests = tests.filter(pl.col("measure").cast(pl.String) == STEP, test="shapiro-wilk")
    runs = ["embedder", "network", "run_id"]
    table = steps.join(tests.filter(pl.col("p_value").is_not_null()).select(runs), on=runs, how="semi")
    z = (pl.col(STEP) - pl.col(STEP).mean()) / pl.col(STEP).std()
    place = (pl.col(STEP).rank("ordinal") - 0.375) / (pl.len() + 0.25)  # Blom 1958
    table = table.select(*runs, z.over(runs).alias("standardized"), place.over(runs).alias("share"))
    table = table.with_columns(pl.Series("normal", stats.norm.ppf(table["share"].to_numpy()))).sort(*runs, "share")
    figure, cells = facets(tests, xlabel="normal quantile", ylabel="step, standardized", sharex=True, sharey="all")
    for (embedder, network), axis in cells.items():
        panel = table.filter(embedder=embedder, network=network)
        test = tests.filter(embedder=embedder, network=network)
        lines = panel.partition_by("run_id", maintain_order=True)
        if not lines:
            empty(axis, f"no run can be tested: {test['reason'][0]}")
            continue
        size = int(np.median([line.height for line in lines]))
        x, low, high = normal_band(size)
        axis.fill_between(x, low, high, color=GREY, alpha=0.25, linewidth=0, label="95 % of normal samples, pointwise")
        axis.axline((0, 0), slope=1, color=GREY, linewidth=0.6, linestyle="--")
        for line in lines[:QQ_RUNS]:
            axis.plot(line["normal"], line["standardized"], color=COLOURS[0], linewidth=0.6, alpha=0.5, label="a run")
        rejected, tested = (test["p_holm"] < 0.05).sum(), test["p_holm"].count()
        more = f", {QQ_RUNS} drawn" if len(lines) > QQ_RUNS else ""
        tell(
            axis, f"n = {len(lines)} runs of {size} steps (median){more}", f"not normal: {rejected} of {tested} (Holm)"
        )
    legend(cells)
    return figure, table


def normal_band(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal quantiles (size,) and where 95 % of the order statistics of standardized normal samples lie at each."""
    x = np.sort(np.random.default_rng(0).standard_normal((QQ_DRAWS, size)), axis=1)
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, ddof=1, keepdims=True)
    low, high = np.quantile(x, [0.025, 0.975], axis=0)
    return stats.norm.ppf((np.arange(1, size + 1) - 0.375) / (size + 0.25)), low, high


def run_similarity(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Mean cosine between the states of every two runs, a matrix per embedder, in order of network, prompt and seed."""
    table = concat_tables(named(files, "drift", "similarity.parquet"), "drift.similarity")
    if table.is_empty():
        return note("No run has a generated state."), table
    figure, cells = facets(table, by=("embedder",), most=(2, 2), height=2.3)
    for (embedder,), axis in cells.items():
        panel = table.filter(embedder=embedder)
        order = ["network", "prompt_id", "seed", "run_id"]
        runs = pl.concat([panel.select(pl.col(f"{name}_{side}").alias(name) for name in order) for side in "ab"])
        runs = runs.unique(order).sort(order)
        place = {run: i for i, run in enumerate(runs["run_id"])}
        matrix = np.full((len(runs), len(runs)), np.nan)
        i, j = (np.array([place[run] for run in panel[f"run_id_{side}"]]) for side in "ab")
        matrix[i, j] = matrix[j, i] = panel["mean_cosine"]
        image = axis.imshow(matrix, interpolation="nearest", vmax=1)
        colour_scale(axis, image, "mean cosine")
        mark_blocks(axis, runs["network"].to_list())
        other = (pl.col("network_a") == pl.col("network_b")) & (pl.col("run_id_a") != pl.col("run_id_b"))
        same = pl.col("prompt_id_a") == pl.col("prompt_id_b")
        pairs = {"one prompt": panel.filter(other & same), "two prompts": panel.filter(other & ~same)}
        told = [f"{what} {part['mean_cosine'].mean():.2f}" for what, part in pairs.items() if len(part)]
        tell(
            axis, f"n = {len(runs)} runs; mean of two runs of {', of '.join(told)}" if told else f"n = {len(runs)} runs"
        )
    return figure, table


def mark_blocks(axis: Axes, names: list[str]) -> None:
    """Lines between the blocks of a matrix whose rows have these names in order, and the names."""
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    for start in starts[1:]:
        axis.axhline(start - 0.5, color="white", linewidth=0.8)
        axis.axvline(start - 0.5, color="white", linewidth=0.8)
    middles = [(a + b - 1) / 2 for a, b in zip(starts, [*starts[1:], len(names)], strict=True)]
    shown = list(zip(middles, (names[start] for start in starts), strict=True))[:MATRIX_NAMES]
    axis.set_yticks([y for y, _ in shown], [textwrap.fill(short(name, 44), 22) for _, name in shown], fontsize=SMALL)
    axis.set_xticks([])


def drift_table(files: Files) -> pl.DataFrame:
    """Cosine distance of the last states to the first, observed and shuffled: median and quartiles over runs."""
    keys = ["embedder", "network", "control"]
    quantiles = drift_quantiles(files).with_columns(pl.col("control").cast(pl.String))
    return quantiles.group_by(keys, maintain_order=True).last().sort(keys)


def texts(table: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """A table with Enum columns as plain text."""
    return table.with_columns(pl.col(columns).cast(pl.String))


def lifetimes_table(files: Files) -> pl.DataFrame:
    """How long what runs began with lasts: share of runs without a change, and difference of quantized and base.

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
