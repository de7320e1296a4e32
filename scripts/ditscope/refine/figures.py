"""Figures of the refiner: training curves and what the diagnostics say."""

import polars as pl
from matplotlib.figure import Figure as Canvas

from ditscope.core.tables import read_table
from ditscope.style import COLOURS, Files, grid, named, note


def refiner_training(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Training curves, one column per model: the autoencoder's loss, the refiner's error and its drifting field.

    The drifting loss is a sum of normalized field strengths, which stays level by construction; what falls as the
    generated latents reach the data's is the field itself, at each radius.
    """
    paths = named(files, "refine", "training.parquet")
    tables = [read_table(path, "refine.training").with_columns(model=pl.lit(path.parent.name)) for path in paths]
    table = pl.concat(tables)
    figure, axes = grid(3, len(paths), width=3.4 * max(len(paths), 2), height=6.0)
    for column, path in enumerate(paths):
        curves = table.filter(model=path.parent.name)
        fields = curves.filter(pl.col("metric").str.starts_with("field_strength"))["metric"].unique(maintain_order=True)
        rows = [
            ("latent_mae", "loss", {"loss": ""}),
            ("refiner", "mean squared error", {"interp/mse_all": "corrupted", "mse_refined": "refined"}),
            (
                "refiner",
                "drifting field",
                {name: name.removeprefix("field_strength_").replace("R", "R = ") for name in fields},
            ),
        ]
        for axis, (network, label, metrics) in zip(axes[:, column], rows, strict=True):
            for metric, name in metrics.items():
                curve = curves.filter(network=network, metric=metric).sort("step")
                axis.plot(curve["step"], curve["value"], linewidth=1, label=name)
            if len(metrics) > 1:
                axis.legend()
            axis.set_title(f"{path.parent.name}: {network}")
            axis.set_xlabel("step")
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
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
            points = errors.filter(model=path.parent.name, metric=metric)
            axis.plot(range(len(points)), points["value"], marker="o", color=colour, label=metric.removeprefix("mse_"))
            axis.set_xticks(range(len(points)), points["group"].to_list())
        axis.set_title(path.parent.name)
        axis.set_xlabel("corruption level")
        axis.set_ylabel("mean squared error of the latents")
        axis.legend()
    return figure, table
