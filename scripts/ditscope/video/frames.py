"""Frames of a film: text that fits, tiles, colours, and how many of what fit into a frame."""

import colorsys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from ditscope.core.atomic import replacing
from ditscope.core.errors import InputError
from ditscope.core.picture_file import JPEG
from ditscope.video.settings import Video

T = TypeVar("T")

BACKGROUND, INK, FAINT = "#FFFFFF", "#1A1A1A", "#8A8A8A"
PANEL = "#F0F0F0"
# Okabe & Ito's colours that white text can be read on: told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#A8487A", "#8C6A00", "#3A3A3A")
MARK = "#F0E442"  # of a semantic jump: Okabe & Ito's yellow, on which black text can be read
RESOLUTIONS = {"hd": (1920, 1080), "4k": (3840, 2160)}  # most pixels of a frame or sheet
GOLDEN = 0.618034  # hues that many turns apart stay apart, however many there are
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


@lru_cache(maxsize=1 << 14)
def wrap(text: str, size: int, width: int, lines: int) -> tuple[str, ...]:
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
        return tuple(wrapped)
    last = wrapped[lines - 1]
    while last and text_width(last + "…", size) > width:
        last = last[:-1]
    return *wrapped[: lines - 1], last.rstrip() + "…"


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
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)


def paste_in(canvas: Image.Image, picture: Image.Image, xy: tuple[int, int], side: int) -> None:
    """Put a picture into the middle of the square of `side` pixels whose top left is `xy`."""
    canvas.paste(picture, (xy[0] + (side - picture.width) // 2, xy[1] + (side - picture.height) // 2))


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour of its own for each name, on which white text can be read (contrast 3.8 and more, WCAG 2.2)."""
    distinct = dict.fromkeys(names)
    return {name: COLOURS[i] if i < len(COLOURS) else further(i) for i, name in enumerate(distinct)}


def further(number: int) -> str:
    """Colours beyond the ones that all readers tell apart: other hues, as light as white text allows."""
    lightness = 0.45
    while contrast(rgb := colorsys.hls_to_rgb(GOLDEN * number % 1, lightness, 0.6)) < 4.5:
        lightness -= 0.01
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in rgb)


def contrast(rgb: Iterable[float]) -> float:
    """Contrast of a colour (channels in [0, 1], sRGB) with white: 1 to 21, by WCAG 2.2."""
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in rgb]
    luminance = sum(share * channel for share, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 1.05 / (luminance + 0.05)


def tint(colour: str) -> str:
    """The colour as it fades: a third of it on white."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - channel) / 3):02X}" for channel in channels)


def draw_chip(draw: ImageDraw.ImageDraw, xy: tuple[int, int], name: str, colour: str, size: int) -> None:
    """The name of a model on its colour."""
    draw.rectangle((*xy, xy[0] + text_width(name, size) + 8, xy[1] + line_height(size)), fill=colour)
    draw.text((xy[0] + 4, xy[1]), name, font=font(size), fill=BACKGROUND)


def chips(names: Iterable[str], size: int, width: int) -> list[tuple[int, int, str]]:
    """Where the chips of these names go in lines of `width` pixels: (x, line, name as far as it fits)."""
    placed: list[tuple[int, int, str]] = []
    x, line = 0, 0
    for name in names:
        (shown,) = wrap(name, size, max(width - 8, 1), 1)
        if x and x + text_width(shown, size) + 8 > width:
            x, line = 0, line + 1
        placed.append((x, line, shown))
        x += text_width(shown, size) + 8 + size
    return placed


def fitting(
    count: int, largest: int, smallest: int, cell: Callable[[int], tuple[int, int]], room: tuple[int, int]
) -> tuple[int, int, int]:
    """(side, columns, cells that fit) for `count` cells in `room` pixels: all of them, as large as they can be.

    `cell` is the width and height of a cell whose picture has that side. At the smallest side they may be fewer.
    """
    side, columns, fits = smallest, 0, 0
    for side in range(max(largest, smallest), smallest - 1, -1):
        width, height = cell(side)
        columns = min(count, room[0] // width)
        fits = min(count, columns * max(0, room[1] // height))
        if fits == count:
            break
    return side, columns, fits


def held(shots: Sequence[T], settings: Video) -> list[T]:
    """The shots of a film, the first and the last as often as they are to stay."""
    extra = round(settings.hold_seconds * settings.fps)
    return [shots[0]] * extra + list(shots) + [shots[-1]] * extra


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spaced from the first to the last; one alone is the last."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)] if most > 1 else [count - 1]


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as .png or .jpg, by `replacing`."""
    kinds = {".png": ("PNG", {}), ".jpg": ("JPEG", JPEG)}
    if path.suffix not in kinds:
        raise InputError(f"{path}: sheets are .png or .jpg; name one of these")
    kind, options = kinds[path.suffix]
    with replacing(path) as partial:
        sheet.save(partial, kind, **options)
