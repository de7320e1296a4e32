"""Figures of activation statistics, sensitivity and bit plans."""

import json

import matplotlib
import polars as pl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator

from ditscope.core.tables import concat_tables
from ditscope.publish.figure_data import named
from ditscope.publish.figures import Files
from ditscope.style import COLOURS, grid

BUCKETS = ("early", "mid", "late")
RANKED = 20  # layers in the ranking


def activation_range(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Largest magnitude that each layer is given (down) at each step (across), and how far above the median channel."""
    columns = ["model", "layer", "kind", "step_index", "sigma", "absmax", "outlier_ratio", "outliers"]
    tables = named(files, "calibrate", "activations.parquet")
    table = concat_tables(tables, "calibration.activations").select(columns).drop_nulls("outlier_ratio")
    models = table["model"].unique(maintain_order=True).to_list()
    rows = [table.filter(model=model)["layer"].n_unique() for model in models]
    figure = Canvas(figsize=(7, 1.5 + 0.1 * sum(rows)))
    axes = figure.subplots(max(len(models), 1), 2, squeeze=False, gridspec_kw={"height_ratios": rows or [1]})
    for row, model in zip(axes, models, strict=False):
        mine = table.filter(model=model)
        for axis, column, label in zip(
            row, ("absmax", "outlier_ratio"), ("largest magnitude", "largest / median channel"), strict=True
        ):
            cells = mine.pivot("step_index", index="layer", values=column, sort_columns=False)
            image = axis.imshow(cells.drop("layer").to_numpy(), aspect="auto", norm=LogNorm(), cmap="magma_r")
            axis.set_title(f"{model}: {label}")
            axis.set_xticks(range(cells.width - 1), cells.columns[1:])
            axis.set_xlabel("step")
            axis.set_yticks(range(len(cells)), cells["layer"].to_list() if column == "absmax" else [], fontsize=4.5)
            figure.colorbar(image, ax=axis)
    return figure, table


def sensitivity_heatmap(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Relative L2 error of the velocity by layer in network order (down) and bits (across)."""
    return heatmap(files, "relative_l2", "relative L2 error of the velocity")


def image_heatmap(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Change of the finished image by layer in network order (down) and bits (across)."""
    return heatmap(files, "image_rms", "root mean square change of the image, whose values are 0 to 1")


def heatmap(files: Files, metric: str, label: str) -> tuple[Canvas, pl.DataFrame]:
    """One metric of the table `sensitivity`: a row of panels, one a bucket, for each model that has it."""
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
        mine = table.filter(model=model)
        layers = mine.select("depth", "layer").unique(maintain_order=True).sort("depth", maintain_order=True)["layer"]
        for axis, bucket in zip(row, BUCKETS, strict=True):
            cells = mine.filter(bucket=bucket).pivot("bits", index="layer", values="value", sort_columns=True)
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
        mine = table.filter(model=model)
        order = mine.group_by("layer").agg(pl.col("value").mean()).sort("value", "layer", descending=True)
        top = order["layer"].head(RANKED).to_list()
        for number, bucket in enumerate(BUCKETS):
            rows = mine.filter(pl.col("layer").is_in(top), bucket=bucket).to_dicts()
            drawn += rows
            for row in rows:
                y = top.index(row["layer"]) + 0.2 * (number - 1)
                if row["value_low"] is not None:
                    axis.plot([row["value_low"], row["value_high"]], [y, y], color=COLOURS[number], linewidth=1)
                label = bucket if row is rows[0] else None
                axis.plot(row["value"], y, "o", color=COLOURS[number], markersize=3, label=label)
        found = agreement.filter(model=model, metric="relative_l2")["spearman"].drop_nulls()
        ranks = f" (Spearman of fast mode {found.min():.3f} to {found.max():.3f})" if len(found) else ""
        axis.set_title(f"{model}, n = {mine['n_images'].max()} images{ranks}")
        axis.set_yticks(range(len(top)), top, fontsize=5)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel(f"relative L2 error of the velocity at {mine['bits'][0]} bits")
        axis.legend()
    return figure, pl.DataFrame(drawn, infer_schema_length=None)


def bit_plan(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Bits of each layer under each plan (left), and predicted error against size (right)."""
    plans = [json.loads(path.read_text()) for path in files["plan"]]
    figure = Canvas(figsize=(7, 2.4 * len(plans)))
    axes = figure.subplots(len(plans), 2, squeeze=False, gridspec_kw={"width_ratios": [3, 2]})
    records = []
    for (left, right), plan in zip(axes, plans, strict=True):
        bits = list(plan["layers"].values())
        left.bar(range(len(bits)), bits, width=1.0, color=COLOURS[0])
        left.set_ylabel("bits")
        left.set_xlabel("layer, in network order")
        left.set_title(f"{plan['model']}, budget {plan['budget']}: {plan['mean_bits']:.2f} mean bits")
        line = plan["frontier"]
        right.plot(
            [p["nominal_bytes"] / 1e6 for p in line], [p["predicted"] for p in line], marker=".", label="best plans"
        )
        right.plot(plan["nominal_bytes"] / 1e6, plan["predicted"], "o", color=COLOURS[1], label="this plan")
        if uniform := plan["uniform"]:
            label = f"uniform {uniform['bits']} bit"
            right.plot(uniform["nominal_bytes"] / 1e6, uniform["predicted"], "x", color=COLOURS[6], label=label)
        right.set_yscale("log")
        right.set_xlabel("nominal MB")
        right.set_ylabel(f"predicted error power ({plan['metric']})")
        right.legend()
        for layer, width in plan["layers"].items():
            records.append({"model": plan["model"], "budget": plan["budget"], "layer": layer, "bits": width})
    return figure, pl.DataFrame(records)
