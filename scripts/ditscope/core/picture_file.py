"""Pictures as bytes: whether they are whole, and their pixels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from ditscope.core.errors import UNREADABLE, InputError

# What Pillow raises on bytes in memory, where an OSError is none of the machine's.
BROKEN: tuple[type[Exception], ...] = (*UNREADABLE, OSError, Image.DecompressionBombError)
JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}  # of Pillow: small pictures lose their colours otherwise


def rgb_image(data: bytes) -> Image.Image:
    """The bytes of a picture as an RGB image."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def pixels(data: bytes) -> np.ndarray:
    """The bytes of a picture as (height, width, 3) uint8."""
    return np.asarray(rgb_image(data))


@contextmanager
def whole() -> Iterator[None]:
    """Turn what Pillow raises on damaged bytes in memory, an OSError among it, into an InputError."""
    try:
        yield
    except UnidentifiedImageError:
        raise InputError("not a readable picture (of no known format)") from None
    except BROKEN as error:
        raise InputError(f"not a readable picture ({error})") from None


def check_sums(data: bytes) -> None:
    """Check the checksums of a picture's chunks, where its format has some, without decoding it."""
    with whole(), Image.open(io.BytesIO(data)) as image:
        image.verify()


def decode_picture(data: bytes) -> int:
    """Check a picture's checksums and decode every frame; how many they are. Raises InputError where it is damaged.

    Decoding alone does not see every flipped bit: a decoder stops at the last row, before the checksum.
    """
    check_sums(data)
    frames = 0
    with whole(), Image.open(io.BytesIO(data)) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            frames += 1
    return frames


def check_mp4(data: bytes) -> None:
    """Refuse what is not an MP4 whose boxes fill it to its end, index and frames among them (ISO/IEC 14496-12, 4.2)."""
    place, kinds = 0, []
    while place < len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8 or place + size > len(data):
            raise InputError("not an MP4 file, or truncated")
        kinds.append(kind)
        place += size
    if kinds[:1] != [b"ftyp"] or not {b"moov", b"mdat"} <= {*kinds}:
        raise InputError("not an MP4 file with index and frames")
