"""Figures of the refiner: what it is worth on held-out samples level by level, its controls, and training curves."""

from pathlib import Path
from textwrap import fill

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import read_table
from ditscope.style import COLOURS, Files, across, grid, named

# Metrics in the order of the panels, with what an axis says of them.
METRICS = {
    "missing_error": "error of missing tokens (variances)",
    "psnr_db": "PSNR (dB)",
    "feature_distance": "feature distance",
    "oracle_all": "all attributes right (share)",
    "oracle_frames": "all attributes right (share of frames)",
    "warp_error": "warp error (grey levels)",
    "flicker": "flicker (grey levels)",
    "off_walls": "paths off the walls (share)",
    "kid": "KID",
}
PLAIN = "interpolated"
WIDTH, HEIGHT = 2.3, 2.0  # of a panel in inches


def evaluations(files: Files) -> pl.DataFrame:
    """The tables `refine.evaluation` of all refiners, with a column `refiner`."""
    return joined(files, "evaluation.parquet", "refine.evaluation")


def joined(files: Files, name: str, table: str) -> pl.DataFrame:
    """A table of all refiners, with a column `refiner`."""
    paths = named(files, "refine", name)
    return pl.concat([read_table(path, table).with_columns(refiner=pl.lit(refiner_of(path))) for path in paths])


def refiner_of(path: Path) -> str:
    """The refiner that a file is of."""
    return path.parent.name


def refiner_evaluation(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Held-out samples by level: interpolated, refined and controls with 95 % intervals, a row per refiner."""
    table = evaluations(files)
    refiners = table["refiner"].unique(maintain_order=True).to_list()
    metrics = [m for m in METRICS if m in table["metric"].unique()]
    figure, axes = panels(len(refiners), len(metrics), HEIGHT)
    for row, refiner in zip(axes, refiners, strict=True):
        own = table.filter(refiner=refiner)
        for axis, metric in zip(row, metrics, strict=False):
            part = own.filter(metric=metric)
            if part.is_empty():
                axis.set_axis_off()
                continue
            draw_levels(axis, part)
            axis.set_ylabel(fill(METRICS[metric], 24))
        row[0].set_title(f"{refiner}: {units_of(own)}", loc="left")
    lines = {line.get_label(): line for axis in figure.axes for line in axis.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=across(1.7, len(lines)))
    return figure, table.filter(pl.col("metric").is_in(metrics))


def panels(refiners: int, metrics: int, height: float) -> tuple[Canvas, np.ndarray]:
    """Axes (refiners, at least metrics): the metrics of a refiner side by side, on as many lines as the page needs."""
    abreast = across(WIDTH, metrics)
    lines = -(-metrics // abreast)
    figure, axes = grid(refiners * lines, abreast, WIDTH * abreast, 0.5 + height * refiners * lines)
    axes = axes.reshape(refiners, lines * abreast)
    for axis in axes[:, metrics:].flat:
        axis.set_axis_off()
    return figure, axes


def draw_levels(axis: Axes, part: pl.DataFrame) -> None:
    """A line per method over levels, with intervals where there are some."""
    for number, ((method,), points) in enumerate(part.group_by("method", maintain_order=True)):
        points = points.sort("level")
        x = points["level"].to_numpy() + 0.06 * (number - 2)
        axis.plot(x, points["value"], marker=".", color=COLOURS[number % len(COLOURS)], label=method, linewidth=1)
        known = points.drop_nulls(["low", "high"])
        at = known["level"].to_numpy() + 0.06 * (number - 2)
        axis.vlines(at, known["low"], known["high"], color=COLOURS[number % len(COLOURS)], linewidth=0.8)
    levels = part.select("level", "keys").unique().sort("level")
    axis.set_xticks(levels["level"], [f"{level}\n{keys} keys" for level, keys in levels.rows()])
    axis.set_xlabel("level")


def units_of(table: pl.DataFrame) -> str:
    """How many samples and units a table is of, in words."""
    return f"{table['samples'][0]} held-out samples of {table['units'][0]} units"


def refiner_gains(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Gain over the interpolation of the same samples: refiners and controls, at each level, with 95 % intervals."""
    table = evaluations(files).filter(pl.col("method") != PLAIN)
    metrics = [m for m in METRICS if m in table["metric"].unique()]
    rows = table.select("refiner", "method").unique(maintain_order=True).rows()
    levels = table["level"].unique().sort().to_list()
    counts = dict(table.select("refiner", "units").unique().rows())
    figure, axes = panels(1, len(metrics), max(0.16 * len(rows) * len(levels), 1.6) + 0.6)
    for axis, metric in zip(axes[0], metrics, strict=False):
        for place, (refiner, method) in enumerate(rows):
            points = table.filter(refiner=refiner, method=method, metric=metric).sort("level")
            for level, gain, low, high in points.select("level", "gain", "gain_low", "gain_high").rows():
                y = place + 0.7 * (levels.index(level) / max(len(levels) - 1, 1) - 0.5)
                colour = COLOURS[levels.index(level) % len(COLOURS)]
                axis.plot(gain, y, ".", color=colour, label=f"level {level}" if place == 0 else None)
                if low is not None:
                    axis.hlines(y, low, high, color=colour, linewidth=0.8)
        axis.axvline(0, color="#999999", linewidth=0.6)
        axis.set_xlabel(fill(f"gain: {METRICS[metric]}", 26))
        first = axis.get_subplotspec().is_first_col()
        names = [f"{r} (n = {counts[r]}):\n{method}" for r, method in rows] if first else [""] * len(rows)
        axis.set_yticks(range(len(rows)), names)
        axis.set_ylim(len(rows) - 0.5, -0.5)
    axes[0, 0].legend()
    return figure, table


def refiner_controls_table(files: Files) -> pl.DataFrame:
    """Refiners and their controls beside each other: mean and paired gain over interpolation, a row per level."""
    kept = [
        "refiner",
        "method",
        "metric",
        "level",
        "keys",
        "value",
        "gain",
        "gain_low",
        "gain_high",
        "samples",
        "units",
    ]
    return evaluations(files).select(kept)


def refiner_training(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Training curves, a column per refiner: the autoencoder's loss, the refiner's errors and its drifting field.

    The drifting loss is a sum of normalised field strengths, which stays level by construction; what falls as the
    generated samples reach the data's is the field itself, at each radius.
    """
    table = joined(files, "training.parquet", "refine.training")
    refiners = table["refiner"].unique(maintain_order=True).to_list()
    abreast = across(3.4, len(refiners))
    lines = -(-len(refiners) // abreast)
    figure, axes = grid(3 * lines, abreast, width=3.4 * max(abreast, 2), height=5.4 * lines)
    axes = axes.reshape(lines, 3, abreast).transpose(1, 0, 2).reshape(3, -1)  # three rows for as many as stand abreast
    for axis in axes[:, len(refiners) :].flat:
        axis.set_axis_off()
    for column, refiner in enumerate(refiners):
        curves = table.filter(refiner=refiner)
        fields = curves.filter(pl.col("metric").str.starts_with("field_strength"))["metric"].unique(maintain_order=True)
        radius = {name: name.removeprefix("field_strength_").replace("R", "R = ") for name in fields}
        errors = {"interp/mse_missing": PLAIN, "refined/mse_missing": "refined"}
        rows = [
            ("latent_mae", "loss", {"loss": ""}),
            ("refiner", "error of missing tokens", errors),
            ("refiner", "drifting field", radius),
        ]
        for axis, (network, label, metrics) in zip(axes[:, column], rows, strict=True):
            shown = curves.filter(pl.col("network") == network, pl.col("metric").is_in(list(metrics)))
            if shown.is_empty():  # trained without drifting, or an encoder that was trained elsewhere
                axis.set_axis_off()
                continue
            for metric, name in metrics.items():
                curve = shown.filter(metric=metric).sort("step")
                axis.plot(curve["step"], curve["value"], linewidth=1, label=name)
            if len(metrics) > 1:
                axis.legend()
            axis.set_title(f"{refiner}: {network}")
            axis.set_xlabel("step")
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
    return figure, table
