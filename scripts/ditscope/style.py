"""One look for all figures, and their saving as reproducible files."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")

import polars as pl
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
