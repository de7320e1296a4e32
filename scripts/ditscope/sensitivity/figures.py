"""Figures of activation statistics, sensitivity and bit plans."""

from collections.abc import Callable, Mapping

import polars as pl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.layer_maps import Panel, grouped, layer_by_layer
from ditscope.sensitivity.buckets import BUCKETS
from ditscope.style import COLOURS, NARROW, SMALL, Files, grid, named, note, page_width, plain, tell

RANKED = 20  # layers in the ranking


VELOCITY = "relative_l2", "relative L2 error of the velocity"
IMAGE = "image_rms", "root mean square change of the image, whose values are 0 to 1"


def sensitivity_heatmap(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Relative L2 error of the velocity by bits: the largest of each kind of layers and each block. Grey: no effect."""
    return layers_map(files, grouped, *VELOCITY)


def sensitivity_layers(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Relative L2 error of the velocity by bits, of every layer in network order. Grey: no effect."""
    return layers_map(files, layer_by_layer, *VELOCITY)


def image_sensitivity(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Change of the finished image by bits: of each kind of layers and of each block the largest. Grey: no effect."""
    return layers_map(files, grouped, *IMAGE)


def image_sensitivity_layers(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Change of the finished image by bits, of every layer in network order. Grey: no effect."""
    return layers_map(files, layer_by_layer, *IMAGE)


def layers_map(
    files: Files, drawing: Callable[[Mapping[str, list[Panel]], str], Canvas], metric: str, label: str
) -> tuple[Canvas, pl.DataFrame]:
    """One metric of the table `sensitivity`: a page per model that has it, with a panel per bucket on one scale."""
    table = concat_tables(named(files, "sensitivity", "sensitivity.parquet"), "sensitivity").filter(metric=metric)
    table = table.sort("model", "depth", maintain_order=True)
    positive = table.filter(pl.col("value") > 0)["value"]
    norm = LogNorm(positive.min(), positive.max()) if len(positive) else LogNorm(1, 10)
    panels = {}
    for model in table["model"].unique(maintain_order=True):
        part = table.filter(model=model)
        title = f"{model}, n = {part['n_images'].max()} images, {part['mode'][0]} mode"
        cells = part.select("layer", "kind", "bucket", x="bits", value="value")
        panels[title] = [Panel(bucket, cells.filter(bucket=bucket), norm, label) for bucket in BUCKETS]
    return drawing(panels, "bits"), table


def sensitivity_ranking(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """The most sensitive layers at the fewest bits, by bucket with intervals; how well fast mode ranks all layers."""
    table = concat_tables(named(files, "sensitivity", "sensitivity.parquet"), "sensitivity")
    agreement = concat_tables(named(files, "sensitivity", "agreement.parquet"), "sensitivity.agreement")
    table = table.filter((pl.col("metric") == "relative_l2") & (pl.col("bits") == pl.col("bits").min()))
    models = table["model"].unique(maintain_order=True).to_list()
    if not models:
        return note("No layer was measured."), table
    figure, axes = grid(len(models), 1, height=0.6 + 3.0 * len(models))
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
        ranks = f"Spearman of fast mode {spearman.min():.3f} to {spearman.max():.3f}" if len(spearman) else ""
        tell(axis, f"{model}, n = {scores['n_images'].max()} images", ranks, wide=44 if page_width() > NARROW else 24)
        axis.set_yticks(range(len(top)), top, fontsize=SMALL)
        axis.invert_yaxis()
        axis.set_xscale("log")
        plain(axis.xaxis)
        axis.set_xlabel(f"relative L2 error of the\nvelocity at {scores['bits'][0]} bits")
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
