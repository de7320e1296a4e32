"""One look for all figures, and their saving as reproducible files."""

import textwrap
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise, product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf, PdfPages
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.font_manager import fontManager
from matplotlib.image import AxesImage
from matplotlib.style.core import STYLE_BLACKLIST
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Bbox
from PIL import Image, ImageOps

matplotlib.use("agg")

from matplotlib.figure import Figure as Canvas

from ditscope.core.atomic import replacing, write_text
from ditscope.core.tables import Files as Files  # of what figures are given; a module of figures needs no other import
from ditscope.core.tables import named as named

GREY = "#666666"  # nulls, and what is said about a figure
NO_CLUSTER = "#cccccc"  # states outside all clusters
WIDTH, NARROW = 7.0, 3.4  # inches: two columns of a paper and one; figures have one of these widths, and are printed so
SMALL = 6  # points: no text is smaller
PAGE_HEAD, TITLE = 0.5, 0.3  # inches above the facets of a page, and of each one's title
# Okabe & Ito's colours: told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
# Letters that DejaVu Sans lacks are drawn in those of these fonts that the machine has; else as boxes of their script.
FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC",
    "Hiragino Sans", "Microsoft YaHei", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Symbols 2",
)  # fmt: skip
INSTALLED = {font.name for font in fontManager.ttflist}
STYLE = {
    "font.family": ["sans-serif", *(name for name in FALLBACKS if name in INSTALLED)],
    "figure.figsize": (WIDTH, WIDTH),  # its width is that of the page: `columns` narrows it
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "figure.constrained_layout.use": True,
    "image.cmap": "viridis",
    "text.parse_math": False,  # a prompt with dollar signs is no formula
    "svg.hashsalt": "ditscope",
    "svg.fonttype": "none",  # words that can be searched, in half of the bytes; a font of another system may stand in
    "pdf.fonttype": 42,
}
# No dates or versions in the files: equal data gives equal bytes.
METADATA = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
# What the formats call a figure's title, of how many it is, and the command that makes it.
WORDS = {
    "svg": {"title": "Title", "description": "Description", "source": "Source"},
    "pdf": {"title": "Title", "description": "Subject", "source": "Keywords"},
    "png": {"title": "Title", "description": "Description", "source": "Comment"},
}
NOTHING: Mapping[str, str] = MappingProxyType({})
# Writing by the canvases themselves: `savefig` draws every figure twice.
PRINT: dict[str, Callable[[Canvas, Path, Mapping], None]] = {
    "svg": lambda figure, path, about: FigureCanvasSVG(figure).print_svg(path, metadata=about),
    "pdf": lambda figure, path, about: FigureCanvasPdf(figure).print_pdf(path, metadata=about),
    "png": lambda figure, path, about: FigureCanvasAgg(figure).print_png(path, metadata=about),
}
# What looks depend on, as matplotlib comes: all but back ends, paths and such.
OF_MATPLOTLIB = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in STYLE_BLACKLIST}
matplotlib.rcParams.update(STYLE)


TILES_SIDE, GAP = 4096, 4  # longest side of pictures drawn as one, and the white between two of them, in pixels


def columns(count: int):
    """A context in which figures are drawn for `count` columns (1 or 2) of a paper.

    All that matplotlib can be set to is as it comes, and then as STYLE says: neither a `matplotlibrc` of the user nor
    what other code of the process has set changes a byte.
    """
    return matplotlib.rc_context(OF_MATPLOTLIB | STYLE | {"figure.figsize": (NARROW if count == 1 else WIDTH, WIDTH)})


def page_width() -> float:
    """The most inches that a figure is wide."""
    return matplotlib.rcParams["figure.figsize"][0]


def across(inches: float, count: int = 99) -> int:
    """How many of `count` panels of so many inches stand side by side on a page."""
    return max(1, min(count, int(page_width() / inches + 1e-6)))


def sized(width: float, height: float) -> Canvas:
    """An empty figure of one column, or of the page where it is to be wider; sizes in inches."""
    return Canvas(figsize=(NARROW if width <= NARROW else page_width(), height))


def grid(rows: int, columns: int, width: float = WIDTH, height: float | None = None, **kwargs):
    """A figure of `rows` x `columns` axes, always as a 2-D array; sizes in inches."""
    figure = sized(width, height or width * rows / max(columns, 1))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def note(text: str) -> Canvas:
    """A figure that says why there is nothing to draw."""
    figure = Canvas(figsize=(NARROW, 1.2))
    figure.text(0.5, 0.5, textwrap.fill(text, 52), ha="center", va="center")
    return figure


def save(
    figure: Canvas, data: pl.DataFrame, stem: Path, formats: list[str], dpi: int, about: Mapping[str, str] = NOTHING
) -> None:
    """Write `stem`.svg / .png / .pdf and the drawn data as `stem`.csv; a PDF has the pages of `facets` as its pages.

    `about` stands in the files' metadata: `title`, `description` (of how many), `source` (the command that makes it).
    """
    place(figure, dpi)
    for kind in formats:
        figure.set_dpi(dpi)
        if kind == "pdf" and len(figure.subfigs) > 1:
            save_pages(figure, Path(f"{stem}.pdf"), metadata(kind, about))
        else:
            with replacing(f"{stem}.{kind}") as partial:
                PRINT[kind](figure, partial, metadata(kind, about))
    flat = [c for c, kind in data.schema.items() if not isinstance(kind, (pl.List, pl.Array, pl.Struct, pl.Object))]
    write_text(f"{stem}.csv", data.select(flat).write_csv())


def place(figure: Canvas, dpi: int) -> None:
    """Place all that is in a figure: once, where each format would do so twice."""
    FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    for (
        axis
    ) in figure.axes:  # now: while a figure is placed, each limit that is not yet known places all of it once more
        axis.get_xlim(), axis.get_ylim()
    engine = figure.get_layout_engine()
    passes = (
        1 if all(axis.get_aspect() == "auto" for axis in figure.axes) else 2
    )  # what is kept in shape moves once more
    for _ in range(passes if engine is not None and figure.axes else 0):
        engine.execute(figure)
    figure.set_layout_engine("none")


def metadata(kind: str, about: Mapping[str, str]) -> dict[str, str | None]:
    """What stands in a file of a format about a figure."""
    return METADATA[kind] | {WORDS[kind][key]: text for key, text in about.items()}


def save_pages(figure: Canvas, path: Path, about: Mapping[str, str | None]) -> None:
    """Write each subfigure as a page of its own of a PDF."""
    with replacing(path) as partial, PdfPages(partial, metadata=about) as pages:
        for page in figure.subfigs:
            for other in figure.subfigs:  # what is cut off need not be drawn
                other.set_visible(other is page)
            pages.savefig(figure, bbox_inches=Bbox(page.bbox.get_points() / figure.dpi))
    for page in figure.subfigs:
        page.set_visible(True)


def draw_tiles(axis: Axes, shape: tuple[int, int], cells: Iterable[tuple[tuple[int, int], np.ndarray]]) -> None:
    """Draw pictures (height, width, 3) uint8 as one image: cell (row, column) is around y = row, x = column.

    Cells are as large as the largest picture, the image at most TILES_SIDE pixels long and wide. An axis per picture
    would take minutes for some hundred.
    """
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=SMALL)
    axis.xaxis.tick_top()
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))
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


def facets(
    table: pl.DataFrame,
    by: tuple[str, ...] = ("embedder", "network"),
    most: tuple[int, int] = (4, 3),
    height: float = 1.75,
    xlabel: str = "",
    ylabel: str = "",
    sharex: bool = False,
    sharey: str = "",
    wrap: bool = False,
    whole: bool = False,
    letters: int = 44,
) -> tuple[Canvas, dict[tuple, Axes]]:
    """Axes by the values of `by`: rows by the first, columns by the second. Of one key, or to `wrap`, in reading order.

    A page has at most `most` (rows, columns) axes, fewer columns where the page is narrow, so that any number of them
    stays legible: pages are subfigures, one below the other. `height` of an axis is in inches; `sharey` is `row`, `all`
    or nothing; x is `whole` numbers or any; lines of titles have at most `letters`. Cells of which the table has no row
    say so and are not among the axes. A column `degenerate` of the table is told in the titles.
    """
    if table.is_empty():
        return note("Nothing to show."), {}
    abreast = across(WIDTH / most[1])
    rows, columns, places = layout(table, by, abreast if wrap or len(by) == 1 else 0)
    blocks = [(r, c) for r in chunks(rows, most[0]) for c in chunks(columns, abreast)]
    wide = max(len(c) for _, c in blocks)
    heights = [PAGE_HEAD + (height + TITLE) * len(r) for r, _ in blocks]
    figure = sized(WIDTH / most[1] * wide, sum(heights))
    pages = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0]
    reasons = degenerate_reasons(table, by)
    cells: dict[tuple, Axes] = {}
    for page, (r, c) in zip(pages, blocks, strict=True):
        axes = page.subplots(len(r), wide, squeeze=False)
        for (i, row), (j, axis) in product(enumerate(r), enumerate(axes.T)):
            key = places.get((row, c[j])) if j < len(c) else None
            if key is None:
                axis[i].set_axis_off()
                continue
            tell(axis[i], " ~ ".join(map(str, key)), reasons.get(key, ""), wide=letters)
            if table.filter(pl.col(name).eq_missing(value) for name, value in zip(by, key, strict=True)).is_empty():
                empty(axis[i], "nothing to show")
                continue
            cells[key] = axis[i]
            axis[i].xaxis.get_major_locator().set_params(**{"integer": True} if whole else {})
            lowest = i == len(r) - 1 or (r[i + 1], c[j]) not in places
            axis[i].set(xlabel=xlabel if lowest else "", ylabel=ylabel if j == 0 else "")
        if len(blocks) > 1:
            page.suptitle(f"page {blocks.index((r, c)) + 1} of {len(blocks)}", fontsize=6, x=0.995, ha="right")
    share(cells, sharex, sharey)
    return figure, cells


def layout(table: pl.DataFrame, by: tuple[str, ...], columns: int) -> tuple[list, list, dict[tuple, tuple]]:
    """Rows and columns of a grid, and the key that stands at each place of it; of so many columns, or by the keys."""
    values = [table[name].unique(maintain_order=True).to_list() for name in by]
    keys = list(product(*values))
    if not columns:
        return *values, {key: key for key in keys}
    wide = min(len(keys), columns)
    return list(range(-(-len(keys) // wide))), list(range(wide)), {divmod(i, wide): key for i, key in enumerate(keys)}


def chunks(values: list, most: int) -> list[list]:
    """`values` in as few parts of at most `most` as hold them, as equal as can be."""
    parts = -(-len(values) // most)
    ends = [-(-len(values) * i // parts) for i in range(parts + 1)]
    return [values[a:b] for a, b in pairwise(ends)]


def degenerate_reasons(table: pl.DataFrame, by: tuple[str, ...]) -> dict[tuple, str]:
    """What is to be said of the cells whose data are degenerate, all or in part, of a table that has such a column."""
    if "degenerate" not in table.columns:
        return {}
    reason = pl.col("degenerate")
    firsts = table.group_by(by).agg(reason.drop_nulls().first(), reason.is_null().any().alias("part"))
    told = {True: "degenerate in part", False: "degenerate"}
    return {tuple(row[:-2]): f"{told[row[-1]]}: {row[-2]}" for row in firsts.rows() if row[-2] is not None}


def share(cells: Mapping[tuple, Axes], sharex: bool, sharey: str) -> None:
    """One x axis for all cells, and one y axis for all or for those of a row."""
    first: dict[object, Axes] = {}
    for key, axis in cells.items():
        if sharex and (lead := first.setdefault("x", axis)) is not axis:
            axis.sharex(lead)
        if sharey and (lead := first.setdefault(("y", key[0] if sharey == "row" else ""), axis)) is not axis:
            axis.sharey(lead)


def tell(axis: Axes, *lines: str, wide: int = 44) -> None:
    """Add lines to the title of an axis: what is seen in it, and what is to be said of it.

    Lines are wrapped at what an axis is wide, at most `wide` letters: of a broad one a part is the names beside it.
    """
    wide = min(max(20, int(22 * page_inches(axis))), wide if page_width() > NARROW else min(wide, 32))
    wrapped = [part for line in lines for part in textwrap.wrap(line, wide, break_long_words=True)]
    title = "\n".join(filter(None, [axis.get_title(), *wrapped]))
    axis.set_title(title, fontsize=6.5, linespacing=1.2)


def empty(axis: Axes, why: str) -> None:
    """An axis that has only the reason why there is nothing in it."""
    axis.text(0.5, 0.5, textwrap.fill(why, 30), ha="center", va="center", fontsize=6.5, color=GREY,
              transform=axis.transAxes)  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)  # not those of axes that share it
    axis.spines[:].set_visible(False)


def legend(cells: Mapping[tuple, Axes], **kwargs) -> None:
    """The labels of all axes of each page, once, above them."""
    for page, axes in by_page(cells).items():
        labels: dict[str, Any] = {}
        for axis in axes:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                labels.setdefault(label, handle)
        if labels:
            room = page.bbox.width / page.dpi * 72 - 50  # points; the page's number stands there too
            columns = int(room // (4.0 * max(map(len, labels)) + 34)) or 1
            names = {"loc": "outside upper left", "ncols": columns, "fontsize": 6.5} | kwargs
            page.legend(list(labels.values()), list(labels), **names)


def by_page(cells: Mapping[tuple, Axes]) -> dict[Any, list[Axes]]:
    """The axes on each page."""
    pages: dict[Any, list[Axes]] = {}
    for axis in cells.values():
        pages.setdefault(axis.figure, []).append(axis)
    return pages


def plain(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: the exponents of powers of ten are too small to be read in print.

    To be called when the limits of the axis are what they will be.
    """
    if axis.get_scale() != "log":
        return
    low, high = sorted(axis.get_view_interval())
    subs = (1.0,) if high / low > 300 else (1.0, 3.0) if high / low > 30 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs) if high / low > 3 else MaxNLocator(4))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def is_leftmost(axis: Axes, cells: dict) -> bool:
    """Whether an axis is the first of its row on a page: the others have the same rows."""
    place = axis.get_subplotspec()
    return not any(
        other.get_subplotspec().rowspan == place.rowspan and other.get_subplotspec().colspan.start < place.colspan.start
        for other in by_page(cells)[axis.figure]
    )


def colour_scale(axis: Axes, image: AxesImage, label: str) -> None:
    """The colours of a matrix beside it, as high as it is."""
    beside = axis.inset_axes((1.03, 0, 0.04, 1))
    axis.figure.colorbar(image, cax=beside)
    beside.set_ylabel(label, fontsize=6.5)
    beside.tick_params(labelsize=SMALL)


def short(text: str | None, most: int) -> str:
    """A text on one line of at most `most` characters; those that cannot be printed, or stand in an SVG, are marked."""
    start = " ".join((text or "")[: 20 * most + 100].split())  # the rest is never seen, and may be long
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in start)
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}\u2026"


def write_counts(axis: Axes, x: Iterable[float], counts: Iterable[int], span: float = 0, unit: str = "") -> None:
    """Write on top of `axis` how many there are at each `x`: at the first and last one, and where the number changes.

    Changes that follow too closely to be read are left to the next number. `span` is how long the x axis is, where that
    is more than these points; `unit` is said of the first number.
    """
    points = list(zip(x, counts, strict=True))
    long = points[-1][0] - points[0][0] if points else 0
    letter = max(span, long) * 0.05 / (0.7 * page_inches(axis))  # wide, at SMALL points
    gap, free, before = 4 * letter, float("-inf"), None
    for i, (place, count) in enumerate(points):
        first, last = before is None, i == len(points) - 1
        text = f"n = {count}{unit}" if first else f"{count}"
        side = "center" if len(points) == 1 else "left" if first else "right" if last and long > gap else "center"
        start = place - letter * len(text) * {"left": 0, "center": 0.5, "right": 1}[side]
        near_end = not last and points[-1][1] != count and points[-1][0] - place < gap
        if count != before and not near_end and (first or start >= free):
            axis.annotate(text, (place, 0.99), xycoords=("data", "axes fraction"), fontsize=SMALL, va="top", ha=side)
            free, before = start + letter * (len(text) + 1.5), count


def page_inches(axis: Axes) -> float:
    """How wide an axis is before it is placed, in inches."""
    within = axis.get_subplotspec().get_position(axis.figure).width
    return within * axis.figure.bbox.width / axis.get_figure(root=True).dpi
