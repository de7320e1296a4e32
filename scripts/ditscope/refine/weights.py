"""Interpolations that are linear in the keys: weight matrices of the geometry, applied as batched matrix products."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import Delaunay, QhullError

from ditscope.refine.grids import Grid, coordinates, squared_distances
from ditscope.refine.known import Known


@dataclass(frozen=True)
class Keys:
    """The keys of a batch by their number, padded to the most that a sample has."""

    index: np.ndarray  # (batch, most) node of each key, rising; padding is arbitrary
    valid: np.ndarray  # (batch, most) bool


def listed(keys: np.ndarray) -> Keys:
    """Masks (batch, nodes) as lists of keys."""
    counts = keys.sum(1)
    index = np.argsort(~keys, axis=1, kind="stable")[:, : counts.max()]
    return Keys(index, np.arange(index.shape[1]) < counts[:, None])


def fill_by_weights(known: Known, weights: Callable[[np.ndarray, Grid], np.ndarray]) -> np.ndarray:
    """Values (batch, nodes, features) with missing nodes filled by `weights(keys, nodes)` (batch, nodes, most keys).

    Keys stay as they are, to the last bit.
    """
    filled = []
    for part in known.chunks(known.keys.shape[1] * int(known.keys.sum(1).max())):
        values = np.take_along_axis(part.values, listed(part.keys).index[..., None], 1)
        fill = weights(part.keys, part.nodes) @ values
        filled.append(np.where(part.keys[..., None], part.values, fill))
    return np.concatenate(filled)


def idw_weights(keys: np.ndarray, nodes: Grid) -> np.ndarray:
    """Weights (batch, nodes, most keys) by inverse squared distance (Shepard 1968); each row sums to 1."""
    chosen, points = listed(keys), coordinates(nodes)
    squared = squared_distances(points, points[chosen.index])
    # a key is so near to itself that no other one counts
    weights = np.where(chosen.valid[:, None], 1 / np.maximum(squared, 1e-300), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def linear_weights(keys: np.ndarray, nodes: Grid) -> np.ndarray:
    """Weights (batch, nodes, most keys): linear between keys on a path, in their Delaunay simplices on a grid.

    Outside the convex hull of the keys, and where they span no simplex, the nearest key has all the weight.
    """
    axes = [axis for axis, n in enumerate(nodes) if n > 1]
    if len(axes) <= 1:
        return path_weights(keys)
    points = coordinates(nodes)[:, axes]
    most = int(keys.sum(1).max())
    weights = np.zeros((*keys.shape, most))
    for sample, mask in zip(weights, keys, strict=True):
        sample[:, : mask.sum()] = simplex_weights(points, points[mask])
    return weights


def path_weights(keys: np.ndarray) -> np.ndarray:
    """Linear weights (batch, nodes, most keys) on a path."""
    chosen, nodes = listed(keys), np.arange(keys.shape[1])
    last = keys.sum(1, keepdims=True) - 1
    before = np.cumsum(keys, 1) - 1  # number of the last key at or before each node, -1 where there is none
    low, high = np.clip(before, 0, last), np.clip(before + ~keys, 0, last)
    start, stop = (np.take_along_axis(chosen.index, number, 1) for number in (low, high))
    share = np.where(stop > start, (nodes - start) / np.maximum(stop - start, 1), 0.0)
    weights = np.zeros((*keys.shape, chosen.index.shape[1]))
    for number, part in ((low, 1 - share), (high, share)):  # where both are one key the shares are 1 and 0
        there = np.take_along_axis(weights, number[..., None], -1)
        np.put_along_axis(weights, number[..., None], there + part[..., None], -1)
    return weights


def simplex_weights(points: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Linear weights (points, keys) of positions by those of the keys, (points, axes) and (keys, axes)."""
    weights = np.zeros((len(points), len(where)))
    try:
        mesh = Delaunay(where)
    except QhullError:  # too few keys, or all in one plane
        inside = np.zeros(len(points), bool)
    else:
        simplex = mesh.find_simplex(points)
        inside = simplex >= 0
        transform = mesh.transform[simplex[inside]]
        first = np.einsum("pij,pj->pi", transform[:, :-1], points[inside] - transform[:, -1])
        shares = np.concatenate([first, 1 - first.sum(1, keepdims=True)], 1).clip(0)
        corners = mesh.simplices[simplex[inside]]
        weights[np.flatnonzero(inside)[:, None], corners] = shares / shares.sum(1, keepdims=True)
    outside = np.flatnonzero(~inside)
    weights[outside, squared_distances(points[outside], where).argmin(1)] = 1
    return weights


def smoothed_weights(keys: np.ndarray, nodes: Grid, sigma: float) -> np.ndarray:
    """Linear weights, averaged over the grid by a Gaussian of standard deviation `sigma` steps; each row sums to 1."""
    points = coordinates(nodes)
    gauss = np.exp(-squared_distances(points, points) / (2 * sigma**2))
    return (gauss / gauss.sum(1, keepdims=True)) @ linear_weights(keys, nodes)
