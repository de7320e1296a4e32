"""What the header of an NPY stream says, before its data is read."""

import math
from typing import Any

import numpy as np


def npy_bytes(file: Any) -> int:
    """Bytes that the header of a .npy stream promises: a damaged one makes NumPy allocate any number of them."""
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = header.get(version, header[2, 0])(file)
    if any(side < 0 for side in shape):
        raise ValueError("its header has a negative shape")
    return math.prod(shape) * dtype.itemsize
