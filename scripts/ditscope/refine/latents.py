"""Latents of generated images as one array, with the records that say what each one is."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ditscope.refine.dataset import Dataset, read_values


@dataclass(frozen=True)
class LatentSet:
    """Standardised latents: zero mean and unit variance in each channel over the whole set."""

    values: np.ndarray  # (samples, channels, *space) float32
    mean: np.ndarray  # (channels,) of the latents as stored
    std: np.ndarray  # (channels,)
    records: list[dict[str, Any]]  # json of each sample, with its `key`

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def space(self) -> tuple[int, ...]:
        """Size of a latent along its spatial (or temporal) axes."""
        return self.values.shape[2:]


def latent_set(data: Dataset, rows: np.ndarray) -> LatentSet:
    """Rows of a data set, held in memory."""
    return LatentSet(read_values(data, rows), data.mean, data.std, data.samples[rows].to_dicts())


def expand(channels: np.ndarray, ndim: int) -> np.ndarray:
    """A value for each channel, shaped to broadcast over (batch, channels, *space) of `ndim` axes."""
    return channels.reshape(1, -1, *[1] * (ndim - 2))
