"""Whole pictures, and names that files give."""

import io

import numpy as np
import pytest
from PIL import Image

from ditscope.core.errors import InputError
from ditscope.core.paths import is_inside
from ditscope.core.picture_file import decode_picture


def test_a_flipped_bit_anywhere_in_a_png_is_seen():
    """Of 8 bits of every byte, one in turn: chunk names, lengths, pixels and checksums."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "png")
    whole = buffer.getvalue()
    assert decode_picture(whole) == 1
    for position in range(len(whole) - 12):  # the twelve bytes of IEND hold nothing
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(InputError, match="not a readable picture"):
            decode_picture(bytes(damaged))


@pytest.mark.parametrize("name", ["a", "samples/0.npz", "é" * 127])
def test_names_of_plain_files_inside(name):
    assert is_inside(name)


@pytest.mark.parametrize(
    "name", ["", ".", "/a", "a/../b", "..", "a\0b", "a" * 256, "é" * 128, "a/" * 2000 + "a", None, 3]
)
def test_names_that_no_file_inside_can_have(name):
    assert not is_inside(name)
