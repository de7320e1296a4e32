"""Figures of the stage `calibrate`."""

import polars as pl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import concat_tables
from ditscope.style import Files, named


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
        statistics = table.filter(model=model)
        for axis, column, label in zip(
            row, ("absmax", "outlier_ratio"), ("largest magnitude", "largest / median channel"), strict=True
        ):
            cells = statistics.pivot("step_index", index="layer", values=column, sort_columns=False)
            image = axis.imshow(cells.drop("layer").to_numpy(), aspect="auto", norm=LogNorm(), cmap="magma_r")
            axis.set_title(f"{model}: {label}")
            axis.set_xticks(range(cells.width - 1), cells.columns[1:])
            axis.set_xlabel("step")
            axis.set_yticks(range(len(cells)), cells["layer"].to_list() if column == "absmax" else [], fontsize=4.5)
            figure.colorbar(image, ax=axis)
    return figure, table
