"""Contact sheets of captures: steps down, blocks across, what each block's output would draw in each cell."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw

from ditscope.capture.files import picture_file
from ditscope.core.patterns import block_index, block_type
from ditscope.video.frames import BACKGROUND, FAINT, INK, colours_of, evenly, font, line_height, text_width, tile, wrap

GAP = 4
MIN_TILE = 24
MAX_SIDE = 3840  # longest side of a sheet in pixels; tiles of deep networks shrink to it


def contact_sheet(
    folder: Path, metadata: dict, cells: Sequence[Sequence[Path]], blocks: Sequence[str], side: int
) -> Image.Image:
    """Draw a generation: `cells[row][column]` is the picture of `blocks[column]` at the row's captured step.

    The generated picture ends the last row. `side` is the longer side of a picture in pixels, less where the sheet
    would be larger than MAX_SIDE; of more steps or blocks than fit, evenly spaced ones are shown.
    """
    most = MAX_SIDE // (MIN_TILE + GAP) - 4
    rows, columns = evenly(len(cells), most), evenly(len(blocks), most)
    steps = [metadata["captured_steps"][row] for row in rows]
    blocks = [blocks[column] for column in columns]
    cells = [[cells[row][column] for column in columns] for row in rows]
    side = max(MIN_TILE, min(side, MAX_SIDE // (len(blocks) + 3) - GAP, MAX_SIDE // (len(steps) + 2) - GAP))
    size = max(9, min(16, side // 5))
    labels = [f"step {step}" for step in steps]
    left = max(text_width(f"{label}  ", size) for label in [*labels, "sigma 0.000"])
    width = left + (len(blocks) + 1) * (side + GAP) + GAP
    title = wrap(f"{metadata['model']}: {metadata['prompt']}", size + 4, width - 2 * GAP, 2)
    head = len(title) * line_height(size + 4) + 2 * line_height(size) + 4 * GAP
    with Image.open(picture_file(folder)) as image:
        final = tile(image, side)
    sheet = Image.new("RGB", (width, head + len(steps) * (final.height + GAP) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title):
        draw.text((GAP, GAP + number * line_height(size + 4)), line, font=font(size + 4), fill=INK)
    draw_heads(draw, (left, head - 2 * line_height(size) - GAP), blocks, side, size)
    for row, (step, paths) in enumerate(zip(steps, cells, strict=True)):
        y = head + row * (final.height + GAP)
        draw.text((GAP, y), labels[row], font=font(size), fill=INK)
        draw.text((GAP, y + line_height(size)), f"sigma {metadata['sigmas'][step]:.3f}", font=font(size), fill=FAINT)
        for column, path in enumerate(paths):
            with Image.open(path) as image:
                sheet.paste(tile(image, side), (left + column * (side + GAP), y))
    sheet.paste(final, (left + len(blocks) * (side + GAP), head + (len(steps) - 1) * (final.height + GAP)))
    return sheet


def draw_heads(draw: ImageDraw.ImageDraw, xy: tuple[int, int], blocks: Sequence[str], side: int, size: int) -> None:
    """The kinds of blocks as bars over their columns, the blocks' numbers below them."""
    x, y = xy
    colours = colours_of(map(block_type, blocks))
    for kind, group in groupby(blocks, block_type):
        count = len(list(group))
        draw.rectangle((x, y, x + count * (side + GAP) - GAP - 1, y + line_height(size)), fill=colours[kind])
        (name,) = wrap(kind, size, max(side, count * (side + GAP) - 2 * GAP), 1)
        draw.text((x + GAP, y), name, font=font(size), fill=BACKGROUND)
        x += count * (side + GAP)
    draw.text((x, y), "image", font=font(size), fill=INK)
    for column, block in enumerate(blocks):
        centre = xy[0] + column * (side + GAP) + side / 2
        text = str(block_index(block))
        draw.text((centre - text_width(text, size) / 2, y + line_height(size) + 2), text, font=font(size), fill=INK)
