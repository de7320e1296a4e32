"""Frames of a film: text that fits, tiles, and writing them as a GIF or an MP4 with equal bytes for equal frames."""

import os
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import imageio_ffmpeg
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
    for word in pieces(text, size, width):
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


def write_film(frames: Iterable[Image.Image], path: Path, fps: float) -> None:
    """Write frames of one size to `path`, a .gif or an .mp4, by a temporary file and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    {".gif": write_gif, ".mp4": write_mp4}[path.suffix](iter(frames), partial, fps)
    os.replace(partial, path)


def write_gif(frames: Iterator[Image.Image], path: Path, fps: float) -> None:
    """An endless GIF; each frame has a palette of its own."""
    indexed = (frame.quantize(256, dither=Image.Dither.NONE) for frame in frames)
    first = next(indexed)
    first.save(path, save_all=True, append_images=indexed, duration=round(1000 / fps), loop=0, disposal=1)


def write_mp4(frames: Iterator[Image.Image], path: Path, fps: float) -> None:
    """H.264 that every player shows: yuv420p, even sides, index at the front."""
    first = next(frames)
    size = first.width + first.width % 2, first.height + first.height % 2
    options = ["-crf", "18", "-movflags", "+faststart", "-threads", "1", "-map_metadata", "-1"]
    options += ["-fflags", "+bitexact", "-flags:v", "+bitexact"]
    writer = imageio_ffmpeg.write_frames(
        path, size, pix_fmt_in="rgb24", pix_fmt_out="yuv420p", fps=fps, codec="libx264", quality=None,
        macro_block_size=1, ffmpeg_log_level="error", output_params=options,
    )  # fmt: skip
    writer.send(None)
    for frame in chain([first], frames):
        canvas = Image.new("RGB", size, BACKGROUND)
        canvas.paste(frame)
        writer.send(np.ascontiguousarray(canvas))
    writer.close()
