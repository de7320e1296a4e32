"""Pixels themselves, from -1 to 1."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ditscope.refine.adapter import Adapter


def load(about: Mapping[str, Any]) -> Adapter:
    """The adapter; there is nothing to load."""
    return Adapter(encode, decode, lambda values: (values + 1) / 2)


def encode(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, [frames,] height, width, 3) uint8 as (n, 3, [frames,] height, width) float32 in [-1, 1]."""
    return np.moveaxis(pictures, -1, 1).astype(np.float32) / 127.5 - 1


def decode(values: np.ndarray) -> np.ndarray:
    """What `encode` was given."""
    return np.rint((np.moveaxis(values, 1, -1).clip(-1, 1) + 1) * 127.5).astype(np.uint8)
