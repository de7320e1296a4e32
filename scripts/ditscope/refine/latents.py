"""Numbers of a channel, and arrays of values."""

import numpy as np


def expand(channels: np.ndarray, ndim: int) -> np.ndarray:
    """A value for each channel, shaped to broadcast over (batch, channels, *space) of `ndim` axes."""
    return channels.reshape(1, -1, *[1] * (ndim - 2))
