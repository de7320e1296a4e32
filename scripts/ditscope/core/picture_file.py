"""Pictures as bytes: whether they are whole, and their pixels."""

import io

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from ditscope.core.errors import InputError


def rgb_image(data: bytes) -> Image.Image:
    """The bytes of a picture as an RGB image."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def pixels(data: bytes) -> np.ndarray:
    """The bytes of a picture as (height, width, 3) uint8."""
    return np.asarray(rgb_image(data))


def decode_picture(data: bytes) -> int:
    """Check the checksums of a picture's chunks, where its format has some, and decode every frame; how many they are.

    Decoding alone does not see every flipped bit: a decoder stops at the last row, before the checksum.
    """
    frames = 0
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
        with Image.open(io.BytesIO(data)) as image:
            for frame in ImageSequence.Iterator(image):
                frame.load()
                frames += 1
        return frames
    except UnidentifiedImageError:
        raise InputError("not a readable picture (of no known format)") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise InputError(f"not a readable picture ({error})") from None
