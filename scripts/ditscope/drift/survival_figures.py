"""Figures of how long things last: what runs began with, and quantized networks beside their base."""

from itertools import cycle

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.drift.figures import KINDS, texts
from ditscope.drift.tables import PROMPT
from ditscope.style import COLOURS, GREY, SMALL, Files, across, facets, grid, named, note, tell, write_counts


def attribute_survival(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Share of runs that are still as they began, by attributes and embedders.

    Attributes are those that the prompt named (oracle), and those that the first picture shows (picture).

    Dotted: the same of runs held against other prompts.
    """
    table = survival_table(files).filter(pl.col("against") == PROMPT)
    if table.is_empty():
        return note("No run can be held against its prompt: a single prompt, and no attributes are read."), table
    return draw_survival(table, "share as it began"), table


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
    abreast = across(3.2, len(pairs))
    rows = -(-len(pairs) // abreast)
    figure, axes = grid(rows, abreast, width=3.2 * abreast, height=rows * (0.9 + 0.17 * most), sharex=True)
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    for axis, (network, base, kind) in zip(axes.flat, pairs, strict=False):
        panel = shown.filter(network=network, base=base, seeds=kind)
        place, (low, high) = range(len(panel)), (panel[end].to_numpy() for end in ("null_low", "null_high"))
        axis.barh(place, high - low, left=low, color=GREY, alpha=0.3)
        axis.hlines(place, panel["low"], panel["high"], color=KINDS[kind])
        axis.plot(panel["difference"], place, "o", color=KINDS[kind], markersize=3)
        axis.axvline(0, color=GREY, linewidth=0.6)
        axis.set_yticks(
            place, [f"{what} ({by}), n = {n}" for by, what, n in panel.select("by", "what", "prompts").rows()]
        )
        poor = panel["degenerate"].drop_nulls()
        tell(axis, f"{network} - {base}, {kind} seeds", f"degenerate: {poor[0]}" if len(poor) else "", wide=32)
        axis.set(xlabel="difference / states")
    return figure, table


def survival_table(files: Files) -> pl.DataFrame:
    """The table `drift.survival` as facets: `embedder` is the reader, `network` has what is compared."""
    table = texts(concat_tables(named(files, "drift", "survival.parquet"), "drift.survival"), "by", "seeds")
    alone = pl.col("against") == PROMPT
    what = pl.when(alone).then(pl.col("network")).otherwise(pl.format("{} beside {}", "network", "against"))
    return table.with_columns(pl.col("by").alias("embedder"), pl.format("{}, {} seeds", what, "seeds").alias("network"))


def draw_survival(table: pl.DataFrame, y: str) -> Canvas:
    """Curves of survival with their intervals; rows are readers, columns networks, lines what is read."""
    figure, cells = facets(
        table, most=(3, 2), wrap=True, xlabel="position", ylabel=y, sharex=True, sharey="all", whole=True
    )  # fmt: skip
    for (reader, network), axis in cells.items():
        panel = table.filter(embedder=reader, network=network)
        for colour, line in zip(cycle(COLOURS), panel.partition_by("what", maintain_order=True), strict=False):
            low, high = (line[end].cast(pl.Float64).fill_null(float("nan")) for end in ("low", "high"))
            style = {"color": colour, "drawstyle": "steps-post"}
            axis.plot(line["position"], line["survival"], label=f"{line['what'][0]}, n = {line['runs'][0]}", **style)
            axis.fill_between(line["position"], low, high, color=colour, alpha=0.12, linewidth=0, step="post")
            axis.plot(line["position"], line["reference"], linestyle=":", linewidth=0.8, **style)
            cut = line.filter(pl.col("censored") > 0)
            axis.plot(cut["position"], cut["survival"], "|", color=colour, markersize=4)
        if len(panel):
            counts = panel.group_by("position").agg(pl.col("at_risk").max()).sort("position")
            write_counts(axis, counts["position"], counts["at_risk"], table["position"].max(), " at most")
            axis.legend(
                fontsize=SMALL, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1
            )  # beside: curves fill it
        axis.set_ylim(0, 1.15)
    return figure
