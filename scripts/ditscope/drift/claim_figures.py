"""Figures of claims about groups of runs: memory of the prompt, displacement, divergence of twins, jumps."""

from collections.abc import Iterator

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.drift.figures import KINDS, texts
from ditscope.drift.tables import BEYOND_WALK
from ditscope.style import COLOURS, GREY, Files, empty, facets, legend, named, note, plain, tell, write_counts

CLAIMED = {"walk": "not a walk", "plateau": "not a plateau"}  # what a small p says


def drift_memory(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Memory of the prompt by position; grey: 95 % of it with prompts permuted among runs."""
    table = texts(concat_tables(named(files, "drift", "memory.parquet"), "drift.memory"), "seeds")
    if table.is_empty():
        return note(reasons(files, "memory")), table
    figure, cells = facets(
        table, xlabel="sequence number", ylabel="memory of the prompt", sharex=True, sharey="all", whole=True
    )
    for axis, kind, line in lines(table, cells):
        x = line["sequence_number"]
        axis.fill_between(x, line["null_low"], line["null_high"], color=GREY, alpha=0.25, linewidth=0)
        draw_interval(axis, x, line["memory"], line["low"], line["high"], kind)
        write_counts(axis, x, line["prompts"], span_of(table), " prompts")
    finish(files, cells, ["memory"])
    return figure, table


def drift_displacement(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Mean squared displacement by lag, beside walks of the observed increments and shuffled states."""
    table = texts(concat_tables(named(files, "drift", "displacement.parquet"), "drift.displacement"), "seeds")
    if table.is_empty():
        return note(reasons(files, "walk")), table
    figure, cells = facets(table, xlabel="lag / states", ylabel="squared displacement", sharex=True, whole=True)
    for axis, kind, line in lines(table, cells):
        for null, colour in (("walk", GREY), ("plateau", COLOURS[5])):
            x, low, middle, high = line.select("lag", f"{null}_low", f"{null}_median", f"{null}_high")
            axis.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
            axis.plot(x, middle, color=colour, linestyle="--", label="walk" if null == "walk" else "shuffled")
        draw_interval(axis, line["lag"], line["displacement"], line["low"], line["high"], kind)
        axis.set_ylim(0, 2.5 * max(line["displacement"].max(), line["plateau_high"].max()) or 1)
        write_counts(axis, line["lag"], line["prompts"], span_of(table, "lag"), " prompts")
    finish(files, cells, ["walk", "plateau"])
    return figure, table


def drift_divergence(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Distance of twins by position, on a logarithmic axis, up to where it saturates; dashed: strangers."""
    table = texts(concat_tables(named(files, "drift", "divergence.parquet"), "drift.divergence"), "seeds")
    if table.is_empty() or not (table["distance"] > 0).any():
        return note(reasons(files, "rate")), table
    figure, cells = facets(table, xlabel="sequence number", ylabel="distance of twins", sharex=True, whole=True)
    for axis, kind, line in lines(table.filter(pl.col("distance") > 0), cells):
        x = line["sequence_number"]
        axis.plot(x, line["stranger"], color=GREY, linestyle="--", label="strangers")
        draw_interval(axis, x, line["distance"], line["low"].clip(1e-6), line["high"], kind)
        for place in x.filter(line["saturated"])[:1]:
            axis.axvline(place, color=KINDS[kind], linestyle=":", label="saturated")
        axis.set_yscale("log")
        write_counts(axis, x, line["prompts"], span_of(table), " prompts")
    finish(files, cells, ["rate"])
    for axis in cells.values():
        plain(axis.yaxis)
    return figure, table


def drift_jumps(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Size over threshold of the jumps of each run, and of the largest step of runs without, by place.

    Title: of the runs that were tested, those with jumps that are more than a walk makes; how many were not tested.
    """
    table = concat_tables(named(files, "drift", "jumps.parquet"), "drift.jumps")
    shown = table.drop_nulls("size")
    if shown.is_empty():
        return note(f"No steps to test: {', '.join(table['reason'].unique().sort()) or 'there are no runs'}."), table
    figure, cells = facets(
        table, xlabel="sequence number", ylabel="size / threshold", sharex=True, sharey="all", whole=True
    )
    for (embedder, network), axis in cells.items():
        there, panel = (rows.filter(embedder=embedder, network=network) for rows in (table, shown))
        if panel.is_empty():
            empty(axis, "; ".join(there["reason"].unique().sort()))
            continue
        axis.axhline(1, color=GREY, linestyle="--")
        sudden = pl.col("jump") & (pl.col("p_walk") <= BEYOND_WALK)
        for kind, colour, label in (
            (sudden, COLOURS[1], "jump, and more than a walk"),
            (pl.col("jump") & ~sudden, COLOURS[4], "jump, as in a walk"),
            (~pl.col("jump"), GREY, "largest step of a run without"),
        ):
            points = panel.filter(kind)
            axis.scatter(
                points["sequence_number"], points["size"] / points["threshold"], s=6, color=colour, label=label
            )
        with_jump, runs, every = (rows["run_id"].n_unique() for rows in (panel.filter(sudden), panel, there))
        chance = f"up to {100 * BEYOND_WALK:.0f} % by chance"
        tell(axis, f"more than a walk: {with_jump} of {runs} runs ({chance}), {every - runs} not tested")
    legend(cells)
    return figure, table


def span_of(table: pl.DataFrame, name: str = "sequence_number") -> float:
    """How long the x axis of all panels is."""
    return table[name].max() - table[name].min()


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


def finish(files: Files, cells: dict, claims: list[str]) -> None:
    """A legend, and the p-values of the claims in the titles; of those without a test what they came to."""
    tests = texts(concat_tables(named(files, "drift", "claims.parquet"), "drift.claims"), "claim", "seeds")
    for (embedder, network), axis in cells.items():
        panel = tests.filter(pl.col("claim").is_in(claims), embedder=embedder, network=network)
        for claim, value, p, runs, reason in panel.select("claim", "statistic", "p_holm", "runs", "reason").rows():
            title = CLAIMED.get(claim, claim)
            found = f"p = {p:.2g}" if p is not None else None if value is None else f"{value:.2g}"
            tell(axis, f"{title}: {found}, n = {runs} runs" if found else f"{title}: {reason}")
    legend(cells)


def reasons(files: Files, claim: str) -> str:
    """Why a claim is not made of any group."""
    tests = texts(concat_tables(named(files, "drift", "claims.parquet"), "drift.claims"), "claim").filter(claim=claim)
    return f"Nothing to show: {'; '.join(tests['reason'].drop_nulls().unique().sort()) or 'there are no runs'}."
