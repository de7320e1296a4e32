"""Picture grids of the refiner: clean, corrupted and refined samples, and the images nearest to each centroid."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ditscope.core.atomic import replacing

MARGIN = 4
LABEL_WIDTH = 150


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
