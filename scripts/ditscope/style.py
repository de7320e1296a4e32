"""One look for all figures, and their saving as reproducible files."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from PIL import Image, ImageOps

matplotlib.use("agg")

from matplotlib.figure import Figure as Canvas

from ditscope.core.atomic import replacing, write_text

# Okabe & Ito's colours: told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "legend.frameon": False,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "figure.constrained_layout.use": True,
    "image.cmap": "viridis",
    "svg.hashsalt": "ditscope",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
# No dates or versions in the files: equal data gives equal bytes.
METADATA = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
matplotlib.rcParams.update(STYLE)


Files = dict[str, list[Path]]  # what each stage left
TILES_SIDE, GAP = 4096, 4  # longest side of pictures drawn as one, and the white between two of them, in pixels


def grid(rows: int, columns: int, width: float = 7.0, height: float | None = None, **kwargs):
    """A figure of `rows` x `columns` axes, always as a 2-D array; sizes in inches."""
    figure = Canvas(figsize=(width, height or width * rows / max(columns, 1)))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def note(text: str, width: float = 5.0) -> Canvas:
    """A figure that says why there is nothing to draw."""
    figure = Canvas(figsize=(width, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return figure


def save(figure: Canvas, data: pl.DataFrame, stem: Path, formats: list[str], dpi: int) -> None:
    """Write `stem`.svg / .png / .pdf and the drawn data as `stem`.csv."""
    for kind in formats:
        with replacing(f"{stem}.{kind}") as partial:
            figure.savefig(partial, format=kind, dpi=dpi, metadata=METADATA[kind])
    flat = [c for c, kind in data.schema.items() if not isinstance(kind, (pl.List, pl.Array, pl.Struct, pl.Object))]
    write_text(f"{stem}.csv", data.select(flat).write_csv())


def named(files: Files, stage: str, name: str) -> list[Path]:
    """The files of a stage whose name is `name`."""
    return [path for path in files[stage] if path.name == name]


def draw_tiles(axis: Axes, shape: tuple[int, int], cells: Iterable[tuple[tuple[int, int], np.ndarray]]) -> None:
    """Draw pictures (height, width, 3) uint8 as one image: cell (row, column) is around y = row, x = column.

    Cells are as large as the largest picture, the image at most TILES_SIDE pixels long and wide. An axis per picture
    would take minutes for some hundred.
    """
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=6)
    axis.xaxis.tick_top()
    axis.set_xticks([])
    axis.set_yticks([])
    most = max(1, TILES_SIDE // shape[1] - GAP), max(1, TILES_SIDE // shape[0] - GAP)
    tiles: dict[tuple[int, int], Image.Image] = {}
    for place, image in cells:
        tiles[place] = Image.fromarray(image)
        tiles[place].thumbnail(most)  # at once: all of them at full size could be gigabytes
    if not tiles:
        return
    width, height = (max(tile.size[side] for tile in tiles.values()) for side in (0, 1))
    mosaic = Image.new("RGB", (shape[1] * (width + GAP), shape[0] * (height + GAP)), "white")
    for (row, column), tile in tiles.items():
        fitted = ImageOps.contain(tile, (width, height), Image.Resampling.NEAREST)
        x, y = column * (width + GAP) + GAP // 2, row * (height + GAP) + GAP // 2
        mosaic.paste(fitted, (x + (width - fitted.width) // 2, y + (height - fitted.height) // 2))
    extent = (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)
    axis.imshow(np.asarray(mosaic), interpolation="nearest", extent=extent)
    axis.set_aspect((height + GAP) / (width + GAP))


def facets(table: pl.DataFrame, width: float = 7.5, height: float = 1.7, **kwargs):
    """Axes of embedder (rows) by network (columns), as a dict."""
    embedders = table["embedder"].unique(maintain_order=True).to_list()
    networks = table["network"].unique(maintain_order=True).to_list()
    figure, axes = grid(len(embedders), len(networks), width=width, height=0.4 + height * len(embedders), **kwargs)
    cells = {(e, n): axes[i, j] for i, e in enumerate(embedders) for j, n in enumerate(networks)}
    for (embedder, network), axis in cells.items():
        axis.set_title(f"{embedder} ~ {network}", fontsize=7)
    return figure, cells


def write_counts(axis: Axes, x: Iterable[float], counts: Iterable[int]) -> None:
    """Write on top of `axis` how many there are at each `x`: at the first one, and wherever the number changes."""
    before = None
    for place, count in zip(x, counts, strict=True):
        if count != before:
            text = f"n = {count}" if before is None else f"{count}"
            axis.annotate(text, (place, 0.99), xycoords=("data", "axes fraction"), fontsize=5, va="top", ha="center")
        before = count
