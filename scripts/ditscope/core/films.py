"""Films: write frames as a GIF or an MP4, with equal bytes for equal frames."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from ditscope.core.atomic import replacing

log = logging.getLogger(__name__)


def write_film(frames: Iterable[Image.Image], path: Path, fps: float) -> None:
    """Write frames of one size to `path`, a .gif or an .mp4, by `replacing`."""
    {".gif": write_gif, ".mp4": write_mp4}[path.suffix](iter(frames), path, fps)
    log.info("wrote %s", path)


def write_gif(frames: Iterator[Image.Image], path: Path, fps: float) -> None:
    """An endless GIF; each frame has a palette of its own."""
    indexed = (frame.quantize(256, dither=Image.Dither.NONE) for frame in frames)
    first = next(indexed)
    playing = {"append_images": indexed, "duration": round(1000 / fps), "loop": 0, "disposal": 1}
    with replacing(path) as partial:
        first.save(partial, "GIF", save_all=True, **playing)


def write_mp4(frames: Iterator[Image.Image], path: Path, fps: float) -> None:
    """H.264 that every player shows: yuv420p, even sides, index at the front."""
    first = next(frames)
    size = first.width + first.width % 2, first.height + first.height % 2
    options = ["-crf", "18", "-movflags", "+faststart", "-threads", "1", "-map_metadata", "-1"]
    options += ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-f", "mp4"]
    with replacing(path) as partial:
        writer = imageio_ffmpeg.write_frames(
            partial, size, pix_fmt_in="rgb24", pix_fmt_out="yuv420p", fps=fps, codec="libx264", quality=None,
            macro_block_size=1, ffmpeg_log_level="error", output_params=options,
        )  # fmt: skip
        writer.send(None)
        for frame in chain([first], frames):
            canvas = Image.new("RGB", size, "white")
            canvas.paste(frame)
            writer.send(np.ascontiguousarray(canvas))
        writer.close()


def mp4_bytes(frames: np.ndarray, fps: float) -> bytes:
    """Frames (frames, height, width, 3) uint8 as an MP4."""
    from PIL import Image

    from ditscope.core.films import write_film

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_film((Image.fromarray(frame) for frame in frames), path, fps)
        return path.read_bytes()
