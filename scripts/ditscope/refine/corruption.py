"""Corrupt token grids: keep some nodes (keys), interpolate the others, optionally replace keys and add noise.

Tokens are rows of an array (batch, tokens, size) in C order of the grid; masks are by node (see `keys`).
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ditscope.core.errors import InputError
from ditscope.core.plugins import load_plugin
from ditscope.refine.grids import Grid, coordinates, squared_distances
from ditscope.refine.keys import key_grid
from ditscope.refine.known import Known, spread
from ditscope.refine.settings import INTERPOLATIONS, Refine

# How far the tokens of a node are to be trusted.
PROTECTED, KEY, REPLACED, MISSING = 1.0, 0.95, 0.5, 0.0


@dataclass(frozen=True)
class Corrupted:
    """What a refiner starts from."""

    tokens: np.ndarray  # (batch, tokens, size) float64
    confidence: np.ndarray  # (batch, nodes): protected 1, key 0.95, replaced key 0.5, missing 0
    interpolation: np.ndarray  # (batch, nodes) in [0, 1], what the interpolation says of itself


def corrupt(
    clean: np.ndarray,
    keys: np.ndarray,
    grid: Grid,
    settings: Refine,
    rng: np.random.Generator,
    protected: np.ndarray | None = None,
    proposals: np.ndarray | None = None,
) -> Corrupted:
    """Corrupt tokens (batch, tokens, size), of which the nodes in `keys` (batch, nodes) are known.

    Keys in the mask `protected`, (nodes,) or (batch, nodes), are neither replaced nor given noise. `proposals` (like
    `clean`) is what keys are replaced from, with probability `settings.key_replacement`. Nothing of a missing node is
    looked at.
    """
    nodes = key_grid(grid, settings.keys)
    safe = keys & (protected if protected is not None else np.zeros(keys.shape[1], bool))
    values = clean.astype(np.float64).reshape(*keys.shape, -1)
    replaced = np.zeros_like(keys)
    if settings.key_replacement and proposals is not None:
        replaced = keys & ~safe & (rng.random(keys.shape) < settings.key_replacement)
        values = np.where(replaced[..., None], proposals.reshape(values.shape), values)
    values = np.where(keys[..., None], values, 0.0)
    check_keys(values, keys)
    known = Known(values.reshape(clean.shape), keys, grid, nodes, settings.patch)
    filled, sure = interpolation(settings).fill(known, settings)
    amplitude = settings.noise_scale * noise_amplitude(keys, nodes, settings, sure)
    amplitude[safe] = 0
    if amplitude.any():
        filled = filled + spread(amplitude, known)[..., None] * rng.standard_normal(filled.shape)
    confidence = np.select([safe, replaced, keys], [PROTECTED, REPLACED, KEY], MISSING)
    return Corrupted(filled, confidence, sure)


def interpolation(settings: Refine) -> ModuleType:
    """The module of the interpolation that the settings name."""
    return load_plugin(settings.interpolation, INTERPOLATIONS, "refine.interpolation", "an interpolation")


def check_keys(values: np.ndarray, keys: np.ndarray) -> None:
    """Refuse samples without a key and keys that are not finite; values (batch, nodes, features)."""
    if not keys.any(1).all():
        raise InputError(f"refine: sample {int(np.argmin(keys.any(1)))} has no key; keep at least one")
    if not np.isfinite(values).all():
        sample, node = np.argwhere(~np.isfinite(values).all(-1))[0]
        raise InputError(f"refine: sample {sample} has NaN or Inf in its key at position {node}; give finite keys")


def noise_amplitude(keys: np.ndarray, nodes: Grid, settings: Refine, confidence: np.ndarray) -> np.ndarray:
    """Relative noise (batch, nodes) in [0, 2].

    gauss: 1, at keys `key_noise`. dist: by the distance to the keys, see `gap_share`; 0 at keys. Where `uncertainty`
    says so, 1 - confidence of the interpolation takes its place or is added, which is 0 at keys too.
    """
    amplitude = np.zeros(keys.shape)
    if settings.noise == "gauss":
        amplitude = np.where(keys, settings.key_noise, 1.0)
    elif settings.noise == "dist":
        amplitude = np.stack([gap_share(mask, nodes) for mask in keys])
    if settings.noise == "none" or settings.uncertainty == "none":
        return amplitude
    doubt = np.where(keys, 0.0, 1 - confidence)
    return doubt if settings.uncertainty == "replace" else amplitude + doubt


def gap_share(mask: np.ndarray, nodes: Grid) -> np.ndarray:
    """How deep each node (nodes,) is in its gap: clip(2 d / gap, 0, 1), d the distance to the nearest key.

    The gap is d and the distance to the nearest key on the other side, that is, at an angle above 90 degrees to the
    first: on a path the stretch between two keys. Where there is none, beyond the last key, it is 1.
    """
    points = coordinates(nodes)
    offsets = (points[mask] - points[:, None]).astype(float)  # (nodes, keys, axes)
    squared = squared_distances(points, points[mask])
    first = squared.argmin(1)
    opposite = np.einsum("nka,na->nk", offsets, offsets[np.arange(len(points)), first]) < 0
    near = np.sqrt(squared.min(1))
    other = np.sqrt(np.where(opposite, squared, np.inf).min(1))
    gap = np.where(np.isfinite(other), near + other, near)
    return np.clip(2 * near / np.maximum(gap, 1e-300), 0, 1)
