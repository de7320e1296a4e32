"""What blocks do: curves over the depth of the network, when the picture becomes visible, and what ablation costs."""

import matplotlib
import numpy as np
import polars as pl
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from ditscope.blocks.tables import BLOCK
from ditscope.core.tables import concat_tables
from ditscope.style import COLOURS, Files, across, grid, named, note, tell

GENERATIONS = pl.col("generation_id").n_unique().alias("generations")


def block_similarity(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Cosine and linear CKA of each block's tokens with those before it, over depth; one colour per noise level."""
    labels = {"cosine": "cosine with block before", "linear_cka": "linear CKA with block before"}
    return curves(concat_tables(named(files, "blocks", "similarity.parquet"), "blocks.similarity"), labels)


def residual_contribution(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Size of what each block adds, relative to its input, and its cosine with it."""
    labels = {"relative_update": "update / input (norms)", "update_cosine": "cosine of update and input"}
    return curves(concat_tables(named(files, "blocks", "residual.parquet"), "blocks.residual"), labels)


def text_drift(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """How far the text tokens are from what the first block is given, and from themselves at the first step."""
    labels = {"cosine_distance": "cosine distance from start", "step_cosine_distance": "cosine distance from step 0"}
    table = concat_tables(named(files, "blocks", "text_drift.parquet"), "blocks.text_drift")
    return curves(table.with_columns(stream=pl.lit("txt")), labels)


def curves(table: pl.DataFrame, labels: dict[str, str]) -> tuple[Canvas, pl.DataFrame]:
    """A row of axes for each model, a column for each measure: means over generations, over depth, conditional half."""
    keys = [*BLOCK, "step", "sigma", "stream"]
    data = table.filter(half="cond").group_by(keys).agg(*(pl.col(c).mean() for c in labels), GENERATIONS).sort(keys)
    models = data["model"].unique().sort().to_list()
    if not models:
        return note("No capture set holds the tokens of neighbouring blocks."), data
    figure, axes = panels(len(models), len(labels))
    colours = matplotlib.colormaps["viridis"]
    streams = data["stream"].unique().sort().to_list()
    styles = dict(zip(streams, ("-", ":"), strict=False))
    for row, model in enumerate(models):
        part = data.filter(model=model)
        heading = f"{model}, n = {part['generations'].max()} generations"
        names = part.select("depth", "block_type", "block_index").unique().sort("depth").rows()
        for column, (measure, label) in enumerate(labels.items()):
            axis = axes[row, column]
            for (_, sigma, stream), line in part.group_by("step", "sigma", "stream", maintain_order=True):
                axis.plot(line["depth"], line[measure], styles[str(stream)], color=colours(1 - float(sigma)), lw=1)
            tell(axis, heading, label)
            block_ticks(axis, names)
    if len(styles) > 1:
        lines = [matplotlib.lines.Line2D([], [], color="black", ls=style) for style in styles.values()]
        figure.legend(lines, list(styles), loc="outside lower left", ncols=2)
    scale = matplotlib.cm.ScalarMappable(Normalize(0, 1), colours.reversed())
    figure.colorbar(scale, ax=axes, label="noise level sigma", fraction=0.03)
    return figure, data


def panels(models: int, measures: int) -> tuple[Canvas, np.ndarray]:
    """Axes by model and measure (models, measures), side by side or one below the other as the page is wide."""
    abreast = across(3.0, measures)
    figure, axes = grid(models * measures // abreast, abreast, height=0.5 + 2.1 * models * measures / abreast)
    return figure, axes.reshape(models, measures)


def block_ticks(axis, names: list[tuple[int, str, int]]) -> None:
    """Name the blocks on the x axis: the first letter of the kind and the number; every n-th of a deep network."""
    every = -(-len(names) // 14)
    chosen = names[::every]
    axis.set_xticks([depth for depth, *_ in chosen], ["in" if d < 0 else f"{k[0]}{i}" for d, k, i in chosen])
    axis.set_xlabel("block")


def decodability(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """PSNR (and feature distance) of every block's clean estimate to the picture; a frame where it is near enough."""
    table = concat_tables(named(files, "blocks", "decodability.parquet"), "blocks.decodability")
    near = concat_tables(named(files, "blocks", "decodable.parquet"), "blocks.decodable")
    measures = {"psnr_db": "PSNR to the picture / dB"}
    if table["feature_cosine_distance"].drop_nulls().len():
        measures["feature_cosine_distance"] = "feature cosine distance to it"
    keys = [*BLOCK, "step", "sigma"]
    data = table.group_by(keys).agg(*(pl.col(c).mean() for c in measures), GENERATIONS).sort(keys)
    models = data["model"].unique().sort().to_list()
    if not models:
        return note("No capture set holds decoded clean estimates."), data
    figure, axes = panels(len(models), len(measures))
    for row, model in enumerate(models):
        part = data.filter(model=model)
        heading = f"{model}, n = {part['generations'].max()} generations"
        depths, steps = part["depth"].unique().sort().to_list(), part["step"].unique().sort().to_list()
        names = part.select("depth", "block_type", "block_index").unique().sort("depth")
        names = names.with_columns(depth=pl.col("depth").replace_strict({d: i for i, d in enumerate(depths)})).rows()
        for column, (measure, label) in enumerate(measures.items()):
            axis = axes[row, column]
            values = np.full((len(steps), len(depths)), np.nan)
            for record in part.to_dicts():
                values[steps.index(record["step"]), depths.index(record["depth"])] = record[measure]
            colours = "viridis" if measure == "psnr_db" else "viridis_r"
            limit = {"vmin": 0, "vmax": min(40.0, np.nanmax(values))} if measure == "psnr_db" else {"vmin": 0}
            image = axis.imshow(values, aspect="auto", cmap=colours, interpolation="nearest", **limit)
            figure.colorbar(image, ax=axis, fraction=0.05)
            firsts = near.filter(model=model, criterion=measure)
            first = firsts.group_by("step").agg(pl.col("depth").median().floor().cast(pl.Int64)).sort("step")
            for step, depth in first.rows():
                if depth in depths:
                    corner = depths.index(depth) - 0.5, steps.index(step) - 0.5
                    axis.add_patch(Rectangle(corner, 1, 1, fill=False, ec=COLOURS[1], lw=1.8, clip_on=False))
            tell(axis, heading, label)
            axis.set_yticks(range(len(steps)), [str(step) for step in steps])
            axis.set_ylabel("step")
            block_ticks(axis, names)
    return figure, data
