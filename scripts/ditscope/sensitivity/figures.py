"""Figures of activation statistics, sensitivity and bit plans."""

import matplotlib
import polars as pl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator

from ditscope.core.tables import concat_tables
from ditscope.sensitivity.buckets import BUCKETS
from ditscope.style import COLOURS, Files, grid, named

RANKED = 20  # layers in the ranking


def sensitivity_heatmap(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Relative L2 error of the velocity by layer in network order (down) and bits (across)."""
    return heatmap(files, "relative_l2", "relative L2 error of the velocity")


def image_sensitivity(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Change of the finished image by layer in network order (down) and bits (across)."""
    return heatmap(files, "image_rms", "root mean square change of the image, whose values are 0 to 1")


def heatmap(files: Files, metric: str, label: str) -> tuple[Canvas, pl.DataFrame]:
    """One metric of the table `sensitivity`: a row of panels, one per bucket, for each model that has it."""
    table = concat_tables(named(files, "sensitivity", "sensitivity.parquet"), "sensitivity").filter(metric=metric)
    models = table["model"].unique(maintain_order=True).to_list()
    rows = [table.filter(model=model)["layer"].n_unique() for model in models]
    figure = Canvas(figsize=(7, 1 + 0.1 * sum(rows)))
    if not models:
        return figure, table
    axes = figure.subplots(len(models), len(BUCKETS), squeeze=False, gridspec_kw={"height_ratios": rows})
    positive = table.filter(pl.col("value") > 0)["value"]
    norm = LogNorm(positive.min(), positive.max()) if len(positive) else None
    colours = matplotlib.colormaps["magma_r"].with_extremes(bad="#dddddd")  # exactly zero: the layer has no effect
    for row, model in zip(axes, models, strict=True):
        scores = table.filter(model=model)
        layers = scores.select("depth", "layer").unique(maintain_order=True).sort("depth", maintain_order=True)["layer"]
        for axis, bucket in zip(row, BUCKETS, strict=True):
            cells = scores.filter(bucket=bucket).pivot("bits", index="layer", values="value", sort_columns=True)
            cells = layers.to_frame().join(cells, on="layer", how="left")
            bits = cells.columns[1:]
            image = axis.imshow(cells.select(bits).to_numpy(), aspect="auto", norm=norm, cmap=colours)
            axis.set_title(f"{model}, {bucket}")
            axis.set_xticks(range(len(bits)), bits)
            axis.set_xlabel("bits")
            axis.set_yticks(range(len(layers)), layers.to_list() if bucket == BUCKETS[0] else [], fontsize=4.5)
    figure.colorbar(image, ax=axes, label=label, shrink=0.4)
    return figure, table


def sensitivity_ranking(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The most sensitive layers at the fewest bits, by bucket with intervals; how well fast mode ranks all layers."""
    table = concat_tables(named(files, "sensitivity", "sensitivity.parquet"), "sensitivity")
    agreement = concat_tables(named(files, "sensitivity", "agreement.parquet"), "sensitivity.agreement")
    table = table.filter((pl.col("metric") == "relative_l2") & (pl.col("bits") == pl.col("bits").min()))
    models = table["model"].unique(maintain_order=True).to_list()
    figure, axes = grid(len(models), 1, width=6, height=3.2 * len(models))
    drawn = []
    for axis, model in zip(axes[:, 0], models, strict=True):
        scores = table.filter(model=model)
        order = scores.group_by("layer").agg(pl.col("value").mean()).sort("value", "layer", descending=True)
        top = order["layer"].head(RANKED).to_list()
        for number, bucket in enumerate(BUCKETS):
            rows = scores.filter(pl.col("layer").is_in(top), bucket=bucket).to_dicts()
            drawn += rows
            for row in rows:
                y = top.index(row["layer"]) + 0.2 * (number - 1)
                if row["value_low"] is not None:
                    axis.plot([row["value_low"], row["value_high"]], [y, y], color=COLOURS[number], linewidth=1)
                label = bucket if row is rows[0] else None
                axis.plot(row["value"], y, "o", color=COLOURS[number], markersize=3, label=label)
        spearman = agreement.filter(model=model, metric="relative_l2")["spearman"].drop_nulls()
        ranks = f" (Spearman of fast mode {spearman.min():.3f} to {spearman.max():.3f})" if len(spearman) else ""
        axis.set_title(f"{model}, n = {scores['n_images'].max()} images{ranks}")
        axis.set_yticks(range(len(top)), top, fontsize=5)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel(f"relative L2 error of the velocity at {scores['bits'][0]} bits")
        axis.legend()
    return figure, pl.DataFrame(drawn, infer_schema_length=None)


def sensitivity_ranking_table(files: Files) -> pl.DataFrame:
    """The ten most sensitive layers of each model at its fewest bits: relative L2 error, mean over buckets."""
    table = concat_tables(named(files, "sensitivity", "sensitivity.parquet"), "sensitivity")
    table = table.filter(pl.col("metric") == "relative_l2")
    mean = table.group_by("model", "layer", "kind", "bits").agg(pl.col("value").mean().alias("relative_l2"))
    least = mean.filter(pl.col("bits") == pl.col("bits").min().over("model"))
    ranked = least.sort("model", "relative_l2", "layer", descending=[False, True, False])
    return ranked.group_by("model", maintain_order=True).head(10)
