"""Frames of a film: text that fits, and tiles."""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from ditscope.core.films import write_film as write_film

BACKGROUND, INK, FAINT = "#FFFFFF", "#1A1A1A", "#8A8A8A"
PANEL = "#F0F0F0"
# Okabe & Ito's colours that white text can be read on: told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#A8487A", "#8C6A00", "#3A3A3A")
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, so that films look the same on every machine."""
    return ImageFont.truetype(str(FONT), size, layout_engine=ImageFont.Layout.BASIC)


def line_height(size: int) -> int:
    """Pixels from one line of text to the next."""
    return round(1.3 * size)


def text_width(text: str, size: int) -> int:
    """Pixels that a line of text takes."""
    return round(font(size).getlength(text))


def wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """Break text into at most `lines` lines of `width` pixels; an ellipsis ends what is cut."""
    wrapped: list[str] = []
    current = ""
    for word in pieces(text[: (lines + 1) * width], size, width):  # a character takes a pixel at least
        longer = f"{current} {word}".strip()
        if text_width(longer, size) <= width:
            current = longer
        else:
            wrapped.append(current)
            current = word
    wrapped.append(current)
    if len(wrapped) <= lines:
        return wrapped
    last = wrapped[lines - 1]
    while last and text_width(last + "…", size) > width:
        last = last[:-1]
    return [*wrapped[: lines - 1], last.rstrip() + "…"]


def pieces(text: str, size: int, width: int) -> Iterator[str]:
    """The words of a text; a word wider than a line comes in parts."""
    for word in text.split():
        while text_width(word, size) > width and len(word) > 1:
            count = 1
            while text_width(word[: count + 1], size) <= width:
                count += 1
            yield word[:count]
            word = word[count:]
        yield word


def draw_lines(
    draw: ImageDraw.ImageDraw, xy: tuple[int, int], lines: Iterable[str], size: int, fill: str = INK
) -> None:
    """Draw lines of text, the first one's top left at `xy`."""
    for number, line in enumerate(lines):
        draw.text((xy[0], xy[1] + number * line_height(size)), line, font=font(size), fill=fill)


def tile(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side at `side` pixels; pixels stay sharp where it grows to twice its size or more."""
    scale = side / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)
