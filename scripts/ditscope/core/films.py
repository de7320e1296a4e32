"""Films: write frames as a GIF or an MP4, with equal bytes for equal frames on any number of cores."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any, Protocol

import imageio_ffmpeg
import numpy as np
from PIL import Image
from PIL.GifImagePlugin import getdata, getheader

from ditscope.core.atomic import replacing
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError

log = logging.getLogger(__name__)

GIF_FPS = 0.01, 50.0  # a GIF says how long a frame stays in 1/100 s, 16 bits; browsers slow down below 2/100 s
COLOURS = 256  # of a GIF
LEVELS = 64  # of a channel, when colours are counted
FLAT = 1 / 500  # share of a film's pixels from which on a colour is an entry of its own
SHOWN = 1 << 20  # colours that median cut is shown at most, repeats included
CHUNK = 4096
SMALLEST = 16  # side of a film in H.265
# The encoders use one thread: both divide the work by the number of threads, and then leave other bytes. Frames are
# sRGB, so the matrix is named: players take small films for BT.601 and large ones for BT.709 otherwise.
CODECS = {
    "h264": ("libx264", ["-crf", "18", "-threads", "1"]),
    "h264-small": ("libx264", ["-crf", "29", "-threads", "1"]),  # for pages: a third of the bytes
    "h265": (
        "libx265",
        [
            "-crf", "20", "-tag:v", "hvc1", "-threads", "1", "-x265-params",
            "pools=none:frame-threads=1:wpp=0:pmode=0:pme=0:lookahead-slices=0:info=0:log-level=error",
        ],
    ),
}  # fmt: skip
MATRIX = [
    "-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709", "-color_primaries", "bt709",
    "-color_trc", "iec61966-2-1", "-color_range", "tv",
]  # fmt: skip
EXACT = ["-movflags", "+faststart", "-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-f", "mp4"]


class Frames(Protocol):
    """Pictures that can be counted, and walked through more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image.Image]: ...


@dataclass(frozen=True)
class Film:
    """Frames that are drawn when they are asked for, so that none need fit into memory; equal shots in a row once."""

    shots: Sequence[Any]
    draw: Callable[[Any], Image.Image]

    def __len__(self) -> int:
        return len(self.shots)

    def __iter__(self) -> Iterator[Image.Image]:
        for shot, repeats in groupby(self.shots):
            frame = self.draw(shot)
            for _ in repeats:
                yield frame


def write_film(frames: Frames, path: Path, fps: float, codec: str = "h264") -> None:
    """Write frames of one size to `path`, a .gif or an .mp4 (codec `h264` or `h265`), by `replacing`.

    Frames are walked through more than once. Raises InputError for no frames, frames of several sizes and other files.
    """
    if path.suffix not in (".gif", ".mp4"):
        raise InputError(f"{path}: films are .gif or .mp4; name one of these")
    if path.suffix == ".gif":
        write_gif(frames, path, fps)
    else:
        write_mp4(frames, path, fps, codec)
    log.info("wrote %s", path)


def of_one_size(frames: Frames, path: Path) -> Iterator[Image.Image]:
    """The frames in RGB. Raises InputError where there is none, or one has another size than the first."""
    size = None
    for number, frame in enumerate(frames):
        size = size or frame.size
        if frame.size != size:
            here, first = (f"{width} x {height}" for width, height in (frame.size, size))
            raise InputError(f"{path}: frame {number} has {here} pixels and the first {first}; scale them to one size")
        yield frame.convert("RGB")
    if size is None:
        raise InputError(f"{path}: a film without frames; give it at least one picture")


# GIF ------------------------------------------------------------------------------------------------------------------


def write_gif(frames: Frames, path: Path, fps: float) -> None:
    """An endless GIF with one palette for all frames and no dither: a pixel that keeps its colour does not change."""
    low, high = GIF_FPS
    if not low <= fps <= high:
        raise InputError(f"{path}: a GIF plays {low:g} to {high:g} frames per second, not {fps:g}; take mp4")
    palette, table = shared_palette(of_one_size(frames, path))
    ends = [round(100 * number / fps) for number in range(len(frames) + 1)]  # in 1/100 s
    cells = (table[cells_of(np.asarray(frame))] for frame in of_one_size(frames, path))
    with replacing(path) as partial, open(partial, "wb") as file:
        for number, (cell, corner, duration) in enumerate(changes(cells, [b - a for a, b in pairwise(ends)])):
            image = Image.fromarray(cell)
            image.putpalette(palette.tobytes())
            if number == 0:
                file.writelines(getheader(image, info={"loop": 0})[0])
            file.writelines(getdata(image, corner, duration=10 * duration, disposal=1))
        file.write(b";")


def changes(
    frames: Iterator[np.ndarray], durations: Sequence[int]
) -> Iterator[tuple[np.ndarray, tuple[int, int], int]]:
    """What a GIF stores of frames (height, width): the smallest part that changes, its top left, how long it stays.

    Frames equal to the one before only make that one stay longer.
    """
    before = np.empty(0)
    waiting: tuple[np.ndarray, tuple[int, int], int] | None = None
    for frame, duration in zip(frames, durations, strict=True):
        changed = frame != before if waiting else np.ones(frame.shape, bool)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if waiting and not len(rows):
            waiting = *waiting[:2], waiting[2] + duration
            continue
        if waiting:
            yield waiting
        part = frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        before, waiting = frame, (part, (int(columns[0]), int(rows[0])), duration)
    if waiting:
        yield waiting


def shared_palette(frames: Iterator[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """A palette (colours, 3) uint8 for all frames, and for each cell of the colour cube its entry (cells,) uint8.

    Cells are 4 levels wide, and stand for their mean colour, which is exact where they hold one. At most 256 cells are
    an entry each. Of more, so are the most frequent ones (grounds, inks, models' colours); the others are cut.
    """
    counts, sums = np.zeros(LEVELS**3), np.zeros((LEVELS**3, 3))
    for frame in frames:
        pixels = np.asarray(frame).reshape(-1, 3)
        cells = cells_of(pixels)
        counts += np.bincount(cells, minlength=len(counts))
        for channel in range(3):
            sums[:, channel] += np.bincount(cells, pixels[:, channel], len(counts))
    used = np.flatnonzero(counts)
    used = used[np.argsort(-counts[used], kind="stable")]
    means = np.rint(sums[used] / counts[used, None]).astype(np.uint8)
    palette = means
    if len(used) > COLOURS:
        own = min(int((counts[used] >= FLAT * counts.sum()).sum()), COLOURS // 2)
        palette = np.concatenate([means[:own], cut(means[own:], counts[used[own:]], COLOURS - own)])
    palette = np.unique(palette, axis=0)
    table = np.zeros(LEVELS**3, np.uint8)
    table[used] = nearest(means, palette)
    return palette, table


def cells_of(pixels: np.ndarray) -> np.ndarray:
    """The cell of the colour cube that each pixel (..., 3) uint8 lies in."""
    red, green, blue = np.moveaxis((pixels // (256 // LEVELS)).astype(np.int32), -1, 0)
    return (red * LEVELS + green) * LEVELS + blue


def cut(colours: np.ndarray, counts: np.ndarray, most: int) -> np.ndarray:
    """At most `most` colours (n, 3) uint8 that stand for `colours` (cells, 3): median cut, then k-means.

    Cells weigh as the root of their count, so that small things keep their colours too.
    """
    weights = np.sqrt(counts)
    repeats = np.ceil(weights * min(1, (SHOWN - len(weights)) / weights.sum())).astype(int)
    shown = Image.fromarray(np.repeat(colours, repeats, axis=0)[None])
    reduced = shown.quantize(most, Image.Quantize.MEDIANCUT, kmeans=1 + SHOWN // 1000)
    return np.array(reduced.getpalette(), np.uint8).reshape(-1, 3)[:most]


def nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The entry of the palette that is nearest to each colour (n, 3), by squared distance in sRGB."""
    entries = palette.astype(np.int32)
    chunks = np.array_split(colours.astype(np.int32), -(-len(colours) // CHUNK))
    return np.concatenate([((chunk[:, None] - entries) ** 2).sum(-1).argmin(1) for chunk in chunks])


# MP4 ------------------------------------------------------------------------------------------------------------------


def write_mp4(frames: Frames, path: Path, fps: float, codec: str = "h264") -> None:
    """H.264 or H.265 that every player shows: yuv420p, index at the front; an odd side has its last line twice."""
    images = of_one_size(frames, path)
    first = next(images)
    width, height = (max(SMALLEST, side + side % 2) for side in first.size)
    encoder, options = CODECS[codec]
    with replacing(path) as partial:
        writer = imageio_ffmpeg.write_frames(
            partial, (width, height), pix_fmt_in="rgb24", pix_fmt_out="yuv420p", fps=fps, codec=encoder, quality=None,
            macro_block_size=1, ffmpeg_log_level="error", output_params=[*options, *MATRIX, *EXACT],
        )  # fmt: skip
        with closing(writer):
            writer.send(None)
            for frame in chain([first], images):
                beyond = (0, height - first.height), (0, width - first.width), (0, 0)
                writer.send(np.pad(np.asarray(frame), beyond, mode="edge"))
        written, _ = imageio_ffmpeg.count_frames_and_secs(partial)
        check_complete(path, "frames", range(len(frames)), range(written))


def mp4_bytes(frames: Frames, fps: float, codec: str = "h264") -> bytes:
    """Frames as an MP4, by default in H.264."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_mp4(frames, path, fps, codec)
        return path.read_bytes()
