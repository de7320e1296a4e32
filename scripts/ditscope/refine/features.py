"""Feature sets of the drifting loss: vectors at the locations, the whole and the patches of each encoder map.

Each feature is (samples, locations, channels); the locations of one feature share one distance scale in the loss.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.refine.encoder import Encoder
from ditscope.refine.patches import patchify
from ditscope.refine.settings import Refine

PATCHES = (2, 4)  # sides of the windows whose mean and standard deviation are taken
VANILLA = "input.vanilla"  # the feature without an encoder
EPSILON = 1e-6  # keeps the gradient of a standard deviation finite

Features = dict[str, Tensor]


def locations(latents: Tensor, maps: Sequence[Tensor]) -> Features:
    """Every position of every map."""
    return {f"map{i}.location": m.flatten(2).transpose(1, 2) for i, m in enumerate(maps)}


def global_statistics(latents: Tensor, maps: Sequence[Tensor]) -> Features:
    """Mean and standard deviation of every map over its positions."""
    features = {}
    for i, m in enumerate(maps):
        features[f"map{i}.mean"], features[f"map{i}.std"] = mean_std(m.flatten(2)[:, None])
    return features


def patch_statistics(latents: Tensor, maps: Sequence[Tensor]) -> Features:
    """Mean and standard deviation over windows of 2 and of 4 positions a side, in a frame, where a map has several."""
    features = {}
    for i, m in enumerate(maps):
        for side in PATCHES:
            space = m.shape[2:][-2:]
            if all(n % side == 0 for n in space) and max(space) > side:
                windows = patchify(m, side).unflatten(-1, (m.shape[1], -1))
                features[f"map{i}.patch{side}.mean"], features[f"map{i}.patch{side}.std"] = mean_std(windows)
    return features


def input_rms(latents: Tensor, maps: Sequence[Tensor]) -> Features:
    """Root mean square of every input channel."""
    return {"input.rms": (latents.flatten(2).square().mean(-1) + EPSILON).sqrt()[:, None]}


def vanilla(latents: Tensor, maps: Sequence[Tensor]) -> Features:
    """The latents themselves as one vector: drifting without an encoder."""
    return {VANILLA: latents.flatten(1)[:, None]}


FEATURES: dict[str, Callable[[Tensor, Sequence[Tensor]], Features]] = {
    "locations": locations,
    "global": global_statistics,
    "patches": patch_statistics,
    "input_rms": input_rms,
    "vanilla": vanilla,
}


def mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the last axis."""
    return x.mean(-1), (x.var(-1, correction=0) + EPSILON).sqrt()


def check_features(names: Sequence[str]) -> None:
    """Refuse feature sets that are not registered, or none at all."""
    if not names:
        raise InputError(f"refine.features: empty; name at least one of {', '.join(FEATURES)}")
    for name in names:
        if name not in FEATURES:
            raise InputError(unknown("refine.features", name, FEATURES, "a feature set"))


def extract(encoder: Encoder, latents: Tensor, names: Sequence[str], most: int = 0) -> Features:
    """All features of the sets `names` for latents (samples, channels, *space).

    Of a feature with more than `most` locations as many are kept, evenly spaced; 0 keeps all.
    """
    maps = encoder.maps(latents)
    features = {key: value for name in names for key, value in FEATURES[name](latents, maps).items()}
    return {key: value[:, spaced(value.shape[1], most)] for key, value in features.items()}


def features_of(encoder: Encoder, values: Tensor, settings: Refine) -> Features:
    """The features of values (samples, channels, *space) that the settings name."""
    return extract(encoder, values, settings.features, settings.most_locations)


def spaced(count: int, most: int) -> slice | list[int]:
    """Which of `count` locations are kept: all, or `most` evenly spaced ones."""
    if most == 0 or count <= most:
        return slice(None)
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def vectors(features: Features) -> int:
    """Vectors that a sample is compared by: the locations of all its features."""
    return sum(feature.shape[1] for feature in features.values())


@torch.no_grad()
def pooled_embedding(encoder: Encoder, latents: Tensor, batch: int = 64) -> Tensor:
    """One vector per sample for diagnostics, (samples, channels) float64, on the CPU: mean and deviation of maps."""
    parts = []
    for chunk in latents.split(batch):
        features = global_statistics(chunk, encoder.maps(chunk))
        parts.append(torch.cat([f[:, 0] for f in features.values()], -1).cpu().double())
    return torch.cat(parts)
