"""Adapters: what the values of a sample are of a picture, a film or a path, and back.

An adapter is a module with `load(about)`, `about` being its description as it stands in data.json and in a refiner's
file: `kind`, and what the module itself needs, as the model whose VAE it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.core.plugins import load_plugin
from ditscope.refine.data_settings import ADAPTERS

# (values, true values, text) of samples -> a number of each sample
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Adapter:
    """How pictures become values, and values pictures; None where one of both cannot be."""

    encode: Callable[[np.ndarray], np.ndarray] | None  # (n, [frames,] height, width, 3) uint8 -> (n, channels, *space)
    decode: Callable[[np.ndarray], np.ndarray] | None  # the inverse; values are not standardised
    # decode as a tensor with a gradient: (n, channels, *space) -> (n, 3, [frames,] height, width) in [0, 1]
    pictures: Callable[[Tensor], Tensor] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)  # of values alone, by name


def load_adapter(about: Mapping[str, Any]) -> Adapter:
    """The adapter of a description. Raises InputError where there is none of its kind."""
    adapter: Adapter = load_plugin(about["kind"], ADAPTERS, "adapter", "an adapter").load(about)
    return adapter


def require_decoder(adapter: Adapter) -> Callable[[np.ndarray], np.ndarray]:
    """An adapter's decoder. Raises InputError where it has none."""
    if adapter.decode is None:
        raise InputError("adapter: these values have no decoder; set the source's `model` to one with their VAE")
    return adapter.decode
