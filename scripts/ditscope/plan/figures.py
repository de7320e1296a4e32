"""Figures of the stage `plan`."""

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.image import AxesImage

from ditscope.layer_maps import OUTSIDE, block_of, part_of
from ditscope.models.bit_plan import load_plan
from ditscope.style import COLOURS, NARROW, SMALL, Files, across, note, page_width, plain, sized, tell

BITS = {"model": pl.String, "budget": pl.String, "layer": pl.String, "bits": pl.Int64}


def bit_plan(files: Files) -> tuple[Canvas, pl.DataFrame]:
    """Bits of each layer under each plan, by block (across) and layer in it (down); predicted error against size."""
    plans = [load_plan(path) for path in files["plan"]]
    records = [
        {"model": plan["model"], "budget": plan["budget"], "layer": layer, "bits": bits}
        for plan in plans
        for layer, bits in plan["layers"].items()
    ]
    data = pl.DataFrame(records, schema=BITS)
    if data.is_empty():
        return note("No plan gives a layer bits."), data
    beside = across(3.5, 2)
    rows = [len(grid_of(plan["layers"])[0]) for plan in plans]
    heights = [max(2.2, 0.6 + 0.115 * n) for n in rows]
    if beside == 1:
        heights = [height for n in heights for height in (n, 2.2)]
    figure = sized(page_width(), sum(heights) + 0.9)
    colours = ListedColormap([colormaps["viridis_r"](x) for x in np.linspace(0, 1, len(set(data["bits"])))])
    norm = BoundaryNorm([*sorted(set(data["bits"])), data["bits"].max() + 1], colours.N)
    widths = {"width_ratios": [5, 2]} if beside == 2 else {}
    axes = figure.subplots(len(heights), beside, squeeze=False, height_ratios=heights, **widths).reshape(-1, 2)
    for (left, right), plan in zip(axes, plans, strict=True):
        image = draw_bits(left, plan, colours, norm)
        draw_frontier(right, plan)
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=60, label="bits of a weight", spacing="uniform")
    edges = norm.boundaries
    bar.set_ticks((edges[1:] + edges[:-1]) / 2, labels=[f"{bits:g}" for bits in edges[:-1]])
    return figure, data


def grid_of(layers: dict[str, int]) -> tuple[list[str], list[str]]:
    """The rows (layers in a block, those outside by their whole names) and columns (blocks) of a plan's map."""
    blocks = list(dict.fromkeys(map(block_of, layers)))
    inside = list(dict.fromkeys(part_of(layer) for layer in layers if block_of(layer) != OUTSIDE))
    outside = [layer for layer in layers if block_of(layer) == OUTSIDE]
    return list(dict.fromkeys([*inside, *outside])), [
        *(block for block in blocks if block != OUTSIDE),
        *[OUTSIDE] * bool(outside),
    ]


def draw_bits(axis: Axes, plan: dict, colours: ListedColormap, norm: BoundaryNorm) -> AxesImage:
    """The map of a plan's bits; where there is nothing, the block has no such layer."""
    rows, blocks = grid_of(plan["layers"])
    cells = np.full((len(rows), len(blocks)), np.nan)
    for layer, bits in plan["layers"].items():
        cells[rows.index(part_of(layer)), blocks.index(block_of(layer))] = bits
    image = axis.imshow(cells, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
    axis.set_yticks(range(len(rows)), rows, fontsize=SMALL)
    names = ["out" if block == OUTSIDE else block[0] + block.rpartition(" ")[2] for block in blocks]
    every = -(-len(names) // 16)
    axis.set_xticks(range(0, len(names), every), names[::every], fontsize=SMALL)
    axis.set_xlabel("block (out: none)")
    tell(axis, f"{plan['model']}, {plan['budget']}: {plan['mean_bits']:.2f} bits on average",
         f"n = {len(plan['layers'])} layers", wide=44 if page_width() > NARROW else 24)  # fmt: skip
    return image


def draw_frontier(axis: Axes, plan: dict) -> None:
    """Predicted error against size: the best plans, this one, and uniform bits."""
    line = plan["frontier"]
    axis.plot([p["nominal_bytes"] / 1e6 for p in line], [p["predicted"] for p in line], marker=".", label="best plans")
    axis.plot(plan["nominal_bytes"] / 1e6, plan["predicted"], "o", color=COLOURS[1], label="this plan")
    if uniform := plan["uniform"]:
        label = f"uniform {uniform['bits']} bit"
        axis.plot(uniform["nominal_bytes"] / 1e6, uniform["predicted"], "x", color=COLOURS[6], label=label)
    axis.set_yscale("log")
    plain(axis.yaxis)
    axis.set_xlabel("nominal MB")
    axis.set_ylabel(f"predicted error power\n({plan['metric']})")
    axis.legend()


def bit_plans_table(files: Files) -> pl.DataFrame:
    """Each bit plan beside uniform bits that fit the same budget."""
    rows = []
    for path in files["plan"]:
        plan = load_plan(path)
        uniform = plan["uniform"] or {"bits": None, "predicted": None}
        kept = {key: plan[key] for key in ("model", "budget", "mean_bits", "nominal_bytes", "predicted")}
        rows.append(kept | {"uniform_bits": uniform["bits"], "uniform_predicted": uniform["predicted"]})
    return pl.DataFrame(rows).sort("model", "budget")
