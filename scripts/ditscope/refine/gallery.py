"""The gallery of a refiner: a picture per sample, level and method, and grids that show many at once."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ditscope.core.atomic import replacing
from ditscope.refine.evaluate import INTERPOLATED, REFINED, Shown
from ditscope.refine.grids import Grid
from ditscope.refine.pictures import given_only, key_frames_of, save_film, save_png, still_of
from ditscope.refine.tables import GALLERY

MARGIN = 4
LABEL_WIDTH = 150
FPS = 6.0  # of films in the gallery
FOLDER = "gallery"
FILM = "film"  # the method of a film of interpolated, refined and true, side by side


def write_gallery(shown: Sequence[Shown], nodes: Grid, folder: Path) -> None:
    """Write a PNG per sample, level and method (films as strips, and side by side as a GIF)."""
    for sample in shown:
        truth = sample.pictures["truth"]
        key_frames = key_frames_of(sample.keys, nodes, len(truth)) if truth.ndim == 4 else None
        for method, picture in ({"keys": given_of(sample, nodes)} | sample.pictures).items():
            image = still_of(picture, key_frames)
            save_png(image, folder / file_name(sample.row, sample.level, method))
        if key_frames is not None:
            films = {m: sample.pictures[m] for m in (INTERPOLATED, REFINED, "truth")}
            save_film(films, key_frames, folder / file_name(sample.row, sample.level, FILM), FPS)


def given_of(sample: Shown, nodes: Grid) -> np.ndarray:
    """What is known of a sample, as a picture."""
    return given_only(sample.pictures["truth"], sample.keys, nodes) if sample.given is None else sample.given


def file_name(row: int, level: int, method: str) -> str:
    """The file of a picture of the gallery."""
    slug = method.replace(", ", "-").replace(" ", "-")
    return f"{row:08d}-level-{level}.{slug}.{'gif' if method == FILM else 'png'}"


def gallery_table(
    samples: pl.DataFrame, rows: Sequence[int], counts: Sequence[int], nodes: int, methods: Sequence[str]
) -> pl.DataFrame:
    """The table `refine.gallery` of rows of the table `refine.samples`, at levels of so many keys of `nodes`."""
    table = []
    for row, (level, count) in product(rows, enumerate(counts, start=1)):
        own = samples.row(row, named=True)
        for method in methods:
            table.append(
                {
                    "picture": f"{FOLDER}/{file_name(row, level, method)}",
                    "key": own["key"],
                    "prompt": own["prompt"],
                    "level": level,
                    "keys": count,
                    "method": method,
                    "label": f"{method}, level {level}: {count} of {nodes} known",
                }
            )
    return pl.DataFrame(table, schema=GALLERY.schema())


def draw_overview(shown: Sequence[Shown], nodes: Grid, path: Path) -> None:
    """Draw what is known, interpolated and refined at each level, and the truth; a column per sample, or frame."""
    if not shown:
        draw_grid([("no samples asked for", [])], path)
        return
    if shown[0].pictures["truth"].ndim == 4:
        shown = [s for s in shown if s.row == shown[0].row]  # frames of one film are enough for a grid
    rows = []
    for level in sorted({s.level for s in shown}):
        at = [s for s in shown if s.level == level]
        known = f"level {level}: {int(at[0].keys.sum())} of {at[0].keys.size}"
        rows.append((f"{known}\nkeys", frames_of([given_of(s, nodes) for s in at])))
        for method in (INTERPOLATED, REFINED):
            rows.append((f"{known}\n{method}", frames_of([s.pictures[method] for s in at])))
    first = min(s.level for s in shown)
    rows.append(("truth", frames_of([s.pictures["truth"] for s in shown if s.level == first])))
    draw_grid(rows, path)


def frames_of(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures as they are, of films all frames."""
    return [frame for p in pictures for frame in (p if p.ndim == 4 else [p])]


def draw_exemplars(labels: Sequence[str], rows: Sequence[list[np.ndarray]], path: Path) -> None:
    """Draw the samples nearest to the centroid of each pseudo-class, nearest first."""
    draw_grid(list(zip(labels, rows, strict=True)) or [("no pictures\nof these values", [])], path)


def draw_grid(rows: list[tuple[str, list[np.ndarray]]], path: Path, tile: int = 96) -> None:
    """Write labelled rows of images (height, width, 3) uint8 as one PNG, each image fitted to `tile` pixels."""
    columns = max(len(images) for _, images in rows)
    size = (LABEL_WIDTH + columns * (tile + MARGIN) + MARGIN, len(rows) * (tile + MARGIN) + MARGIN)
    grid = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(14)
    for row, (label, images) in enumerate(rows):
        top = MARGIN + row * (tile + MARGIN)
        draw.multiline_text((MARGIN, top + tile // 2), label, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            method = Image.Resampling.NEAREST if max(image.shape[:2]) < tile else Image.Resampling.LANCZOS
            fitted = ImageOps.contain(Image.fromarray(image), (tile, tile), method)
            grid.paste(fitted, (LABEL_WIDTH + MARGIN + column * (tile + MARGIN), top))
    with replacing(path) as partial:
        grid.save(partial, "PNG", compress_level=6)
