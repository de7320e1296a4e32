"""Figures of the stage `calibrate`."""

import polars as pl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.layer_maps import Panel, grouped, layer_by_layer
from ditscope.style import Files, named

MEASURES = {"absmax": "largest magnitude", "outlier_ratio": "largest / median channel"}


def activation_range(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Largest magnitude that layers are given at each step, and how far above the median channel: by kind and block."""
    table = activations(files)
    return grouped(panels_of(table), "step"), table


def activation_layers(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Largest magnitude that each layer is given at each step, and its ratio to the median channel: the full list."""
    table = activations(files)
    return layer_by_layer(panels_of(table), "step"), table


def activations(files: Files) -> pl.DataFrame:
    """The statistics of what layers are given that are drawn."""
    columns = ["model", "layer", "kind", "step_index", "sigma", "absmax", "outlier_ratio", "outliers", "n"]
    tables = named(files, "calibrate", "activations.parquet")
    return concat_tables(tables, "calibration.activations").select(columns).drop_nulls("outlier_ratio")


def panels_of(table: pl.DataFrame) -> dict[str, list[Panel]]:
    """Two panels per model, each on a scale of its own."""
    panels = {}
    for model in table["model"].unique(maintain_order=True):
        part = table.filter(model=model)
        panels[f"{model}, n = {part['n'].max()} samples per step"] = [
            Panel(label, part.select("layer", "kind", x="step_index", value=column), scale_of(part[column]), label)
            for column, label in MEASURES.items()
        ]
    return panels


def scale_of(values: pl.Series) -> LogNorm:
    """A logarithmic scale over the positive values."""
    positive = values.filter(values > 0)
    return LogNorm(positive.min(), positive.max()) if len(positive) else LogNorm(1, 10)
