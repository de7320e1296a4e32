"""Figures of sensitivity, bit plans and benchmarks."""

import json

import matplotlib
import numpy as np
import polars as pl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas

from ditscope.figures import Files
from ditscope.figures.files import benchmark_points, named
from ditscope.figures.style import COLOURS, grid, note
from ditscope.tables import concat_tables

BUCKETS = ("early", "mid", "late")


def sensitivity_heatmap(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Relative L2 error by layer in network order (down) and bits (across); a row of panels for each model."""
    table = concat_tables(named(files, "sensitivity", "sensitivity.parquet"), "sensitivity").filter(
        metric="relative_l2"
    )
    models = table["model"].unique(maintain_order=True).to_list()
    rows = [table.filter(model=model)["layer"].n_unique() for model in models]
    figure = Canvas(figsize=(7, 1 + 0.1 * sum(rows)))
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
    figure.colorbar(image, ax=axes, label="relative L2 error of the velocity", shrink=0.4)
    return figure, table


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
        right.set_ylabel("predicted error (noise / signal)")
        right.legend()
        for layer, width in plan["layers"].items():
            records.append({"model": plan["model"], "budget": plan["budget"], "layer": layer, "bits": width})
    return figure, pl.DataFrame(records)


def benchmark_quality(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Each quality metric of each scheme, a point with its interval."""
    table = concat_tables(named(files, "benchmark", "quality.parquet"), "benchmark.quality")
    drawn = table.filter(pl.col("value").is_not_null())
    if drawn.is_empty():
        return note("No quality metric could be computed: see the reasons in the table."), table
    metrics = drawn["metric"].unique(maintain_order=True).to_list()
    cases = drawn.select("model", "scheme", "compile").unique(maintain_order=True).rows()
    columns = min(4, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, axes = grid(rows, columns, width=8, height=rows * (0.8 + 0.16 * len(cases)), sharey=True)
    for axis in axes.flat[len(metrics) :]:
        axis.set_axis_off()
    for axis, metric in zip(axes.flat, metrics, strict=False):
        axis.set_title(metric)
        axis.set_yticks(range(len(cases)), [f"{s}, {c}" for _, s, c in cases], fontsize=6)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        for y, (model, scheme, state) in enumerate(cases):
            for row in drawn.filter(metric=metric, model=model, scheme=scheme, compile=state).to_dicts():
                if row["low"] is not None and row["high"] is not None:
                    axis.plot([row["low"], row["high"]], [y, y], color=COLOURS[7], linewidth=1.5)
                axis.plot(row["value"], y, "o", color=COLOURS[0], markersize=4)
    return figure, table


def benchmark_pareto(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Quality loss against nominal size, one point a scheme; hollow where the library only simulates the bits."""
    table = benchmark_points(files)
    if table.is_empty():
        return note("No scheme has both a size and a quality loss."), table
    figure, axes = grid(1, 1, width=5, height=3.2)
    axis = axes[0, 0]
    for row in table.to_dicts():
        x = row["nominal_bytes"] / 1e6
        if row["low"] is not None:
            axis.plot([x, x], [row["low"], row["high"]], color=COLOURS[7], linewidth=1, zorder=1)
        axis.plot(x, row["value"], "o", color=COLOURS[0], fillstyle="none" if row["simulated"] else "full")
        axis.annotate(row["scheme"], (x, row["value"]), xytext=(4, 3), textcoords="offset points", fontsize=6)
    axis.axhline(0.05, color=COLOURS[1], linewidth=0.8, linestyle="--", label="target: 5 %")
    axis.set_xlabel("nominal size of the transformer / MB")
    axis.set_ylabel("quality loss")
    axis.legend()
    return figure, table


def benchmark_latency(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Median latency with the 10th and 90th percentile, by scheme; a panel for each batch size."""
    table = concat_tables(named(files, "benchmark", "benchmark.timing.parquet"), "benchmark.timing")
    table = table.filter(pl.col("latency_median_ms").is_not_null())
    if table.is_empty():
        return note("Nothing could be timed: see the reasons in the table."), table
    batches = sorted(table["batch"].unique())
    cases = table.select("model", "scheme", "compile").unique(maintain_order=True).rows()
    figure, axes = grid(1, len(batches), width=7, height=0.8 + 0.22 * len(cases), sharey=True)
    for axis, batch in zip(axes[0], batches, strict=True):
        axis.set_title(f"batch {batch}")
        axis.set_xlabel("ms a batch")
        axis.set_yticks(range(len(cases)), [f"{s}, {c}" for _, s, c in cases])
        axis.invert_yaxis()
        for y, (model, scheme, state) in enumerate(cases):
            for row in table.filter(model=model, scheme=scheme, compile=state, batch=batch).to_dicts():
                spread = np.abs(np.array([[row["latency_p10_ms"]], [row["latency_p90_ms"]]]) - row["latency_median_ms"])
                axis.barh(y, row["latency_median_ms"], color=COLOURS[0] if state == "eager" else COLOURS[2])
                axis.errorbar(row["latency_median_ms"], y, xerr=spread, color="black", capsize=2, linewidth=0.8)
    return figure, table
