"""Figures of the refiner: training curves and what the diagnostics say."""

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.figures import Files
from ditscope.figures.files import named
from ditscope.figures.style import COLOURS, grid, note
from ditscope.tables import read_table


def refiner_training(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Loss of the latent autoencoder and of the refiner over steps, one column a model."""
    paths = named(files, "refine", "training.parquet")
    tables = [read_table(path, "refine.training").with_columns(model=pl.lit(path.parent.name)) for path in paths]
    table = pl.concat(tables)
    losses = table.filter(pl.col("metric") == "loss")
    networks = losses["network"].unique(maintain_order=True).to_list()
    figure, axes = grid(len(networks), len(paths), width=3.4 * max(len(paths), 2), height=2.0 * len(networks))
    for column, path in enumerate(paths):
        for row, network in enumerate(networks):
            axis = axes[row, column]
            mine = losses.filter(model=path.parent.name, network=network).sort("step")
            axis.plot(mine["step"], mine["value"], linewidth=1)
            axis.set_title(f"{path.parent.name}: {network}")
            axis.set_xlabel("step")
            axis.set_ylabel("loss")
    return figure, table


def refiner_diagnostics(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Mean squared error to the clean latents by corruption level, interpolated and refined."""
    paths = named(files, "refine", "diagnostics.parquet")
    tables = [read_table(path, "refine.diagnostics").with_columns(model=pl.lit(path.parent.name)) for path in paths]
    table = pl.concat(tables)
    errors = table.filter(pl.col("metric").is_in(["mse_corrupted", "mse_refined"]))
    if errors.is_empty():
        return note("The diagnostics hold no errors by level."), table
    figure, axes = grid(1, len(paths), width=3.4 * max(len(paths), 2), height=2.4)
    for axis, path in zip(axes[0], paths, strict=True):
        for colour, metric in zip(COLOURS, ("mse_corrupted", "mse_refined"), strict=False):
            mine = errors.filter(model=path.parent.name, metric=metric)
            axis.plot(range(len(mine)), mine["value"], marker="o", color=colour, label=metric.removeprefix("mse_"))
            axis.set_xticks(range(len(mine)), mine["group"].to_list())
        axis.set_title(path.parent.name)
        axis.set_xlabel("corruption level")
        axis.set_ylabel("mean squared error of the latents")
        axis.legend()
    return figure, table
