"""Corrupt token grids: keep nested sets of tokens or of frames (keys), interpolate the others, optionally add noise.

A grid has any number of axes: (rows, columns) of an image, (frames, rows, columns) of a video, (steps,) of a path.
Tokens are rows of a float64 array (batch, tokens, channels) in C order of the grid.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.sparse.linalg import splu
from scipy.spatial import QhullError

from ditscope.core.errors import InputError
from ditscope.refine.settings import Refine

Grid = tuple[int, ...]
EDGE_FLOOR = 1e-6  # smallest edge weight: keeps every token connected to a key
KEY_NOISE = 0.25  # share of `gauss` noise that keys receive


# Keys ---------------------------------------------------------------------------------------------------------------


def key_grid(grid: Grid, keys: str) -> Grid:
    """The grid of what is kept or missing as a whole: the tokens themselves (patches), or the frames of a video."""
    if keys == "frames" and len(grid) == 2:
        raise InputError("refine.keys: `frames`, but an image has none; use `patches`")
    return grid[:1] if keys == "frames" else grid


def key_counts(tokens: int, levels: int, minimum: int, schedule: str, kind: str = "patches") -> list[int]:
    """Number of keys at levels 1 to `levels`: falls strictly from below `tokens` to `minimum`.

    From hard to easy the counts grow linearly, by doubling, or by the factor (tokens / minimum)^(1 / levels).
    """
    if minimum < 1 or minimum + levels > tokens:
        raise InputError(f"refine.min_anchors: {minimum} anchors and {levels} levels do not fit into {tokens} {kind}")
    growth: dict[str, Callable[[int], float]] = {
        "linear": lambda n: minimum + (tokens - minimum) * n / levels,
        "doubling": lambda n: minimum * 2.0**n,
        "geometric": lambda n: minimum * (tokens / minimum) ** (n / levels),
    }
    counts = [minimum]
    for n in range(1, levels):
        # at least one more than the harder level, and room for the easier ones below the whole grid
        counts.append(int(np.clip(round(growth[schedule](n)), counts[-1] + 1, tokens - levels + n)))
    return counts[::-1]


def key_mask(order: np.ndarray, count: int) -> np.ndarray:
    """Mask (tokens,) of the first `count` tokens of a permutation: nested for growing counts."""
    mask = np.zeros(len(order), bool)
    mask[order[:count]] = True
    return mask


def draw_keys(rng: np.random.Generator, levels: np.ndarray, tokens: int, counts: list[int]) -> np.ndarray:
    """Key masks (batch, tokens) of samples at 1-based `levels` (batch,), each by a permutation of its own."""
    return np.stack([key_mask(rng.permutation(tokens), counts[level - 1]) for level in levels])


# Geometry -----------------------------------------------------------------------------------------------------------


def coordinates(grid: Grid) -> np.ndarray:
    """Integer position of each token, (tokens, axes)."""
    return np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))


def grid_edges(grid: Grid) -> np.ndarray:
    """Pairs (edges, 2) of tokens that are neighbours along one axis."""
    index = np.arange(np.prod(grid)).reshape(grid)
    pairs = [
        np.stack([index.take(range(n - 1), axis).ravel(), index.take(range(1, n), axis).ravel()], -1)
        for axis, n in enumerate(grid)
    ]
    return np.concatenate(pairs)


def key_distances(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Euclidean distances (tokens, keys) of one sample."""
    points = coordinates(grid).astype(float)
    return np.linalg.norm(points[:, None] - points[None, mask], axis=-1)


# Interpolation ------------------------------------------------------------------------------------------------------


def interpolate_idw(tokens: np.ndarray, keys: np.ndarray, grid: Grid, settings: Refine) -> np.ndarray:
    """Fill missing tokens by the mean of the keys, weighted by inverse squared distance (Shepard 1968)."""
    filled = tokens.copy()
    for sample, mask in zip(filled, keys, strict=True):
        weights = key_distances(mask, grid)[~mask] ** -2
        sample[~mask] = weights @ sample[mask] / weights.sum(1, keepdims=True)
    return filled


def interpolate_linear(tokens: np.ndarray, keys: np.ndarray, grid: Grid, settings: Refine) -> np.ndarray:
    """Fill missing tokens linearly: between keys on a path, in the keys' Delaunay simplices on a grid.

    Outside the convex hull of the keys, and where they span no simplex, the nearest key is taken.
    """
    points = coordinates(grid).astype(float)
    filled = tokens.copy()
    for sample, mask in zip(filled, keys, strict=True):
        where, values, missing = points[mask], sample[mask], points[~mask]
        if len(grid) == 1:
            inside = [np.interp(missing[:, 0], where[:, 0], column) for column in values.T]
            sample[~mask] = np.stack(inside, -1)
            continue
        fill = NearestNDInterpolator(where, values)(missing)
        try:
            inside = LinearNDInterpolator(where, values)(missing)
        except QhullError:  # too few keys, or all on one line
            inside = np.full_like(fill, np.nan)
        sample[~mask] = np.where(np.isnan(inside), fill, inside)
    return filled


def interpolate_laplacian(tokens: np.ndarray, keys: np.ndarray, grid: Grid, settings: Refine) -> np.ndarray:
    """Fill missing tokens harmonically on the grid's graph, with edges weakened where features change.

    With U the missing and K the known tokens of the whole batch, solves (L_UU + ridge I) X_U = -L_UK X_K + ridge X0,
    X0 being the inverse-distance fill that the edge weights are read from. Pulling towards X0, not towards zero, keeps
    constants and the maximum principle exact.
    """
    start = interpolate_idw(tokens, keys, grid, settings)
    laplacian = graph_laplacian(edge_weights(start, grid, settings.sigma_feature), grid)
    missing = ~keys.ravel()
    values = start.reshape(-1, tokens.shape[-1])
    rows = laplacian[missing]
    system = rows[:, missing] + settings.ridge * sparse.eye_array(int(missing.sum()))
    right = settings.ridge * values[missing] - rows[:, ~missing] @ values[~missing]
    filled = values.copy()
    filled[missing] = splu(system.tocsc()).solve(right)
    return filled.reshape(tokens.shape)


def edge_weights(tokens: np.ndarray, grid: Grid, sigma: float) -> np.ndarray:
    """Weights (batch, edges) exp(-mean squared feature difference / 2 sigma^2), at least EDGE_FLOOR."""
    edges = grid_edges(grid)
    difference = ((tokens[:, edges[:, 0]] - tokens[:, edges[:, 1]]) ** 2).mean(-1)
    return np.maximum(np.exp(-difference / (2 * sigma**2)), EDGE_FLOOR)


def graph_laplacian(weights: np.ndarray, grid: Grid) -> sparse.csr_array:
    """Block-diagonal graph Laplacian (batch * tokens, batch * tokens) of edge weights (batch, edges).

    Each edge adds w to both diagonal entries and -w to both others; building the matrix from triplets sums entries at
    one place, which indexed assignment would not.
    """
    batch, tokens = len(weights), int(np.prod(grid))
    offsets = tokens * np.arange(batch)[:, None]
    a, b = ((grid_edges(grid)[:, side] + offsets).ravel() for side in (0, 1))
    w = weights.ravel()
    triplets = (np.concatenate([w, w, -w, -w]), (np.concatenate([a, b, a, b]), np.concatenate([a, b, b, a])))
    return sparse.coo_array(triplets, shape=(batch * tokens, batch * tokens)).tocsr()


INTERPOLATIONS = {"linear": interpolate_linear, "idw": interpolate_idw, "laplacian": interpolate_laplacian}


# Noise and the whole ------------------------------------------------------------------------------------------------


def noise_amplitude(keys: np.ndarray, grid: Grid, mode: str) -> np.ndarray:
    """Relative noise (batch, tokens) in [0, 1].

    none: zero. gauss: 1, at keys 0.25. dist: the distance to the nearest key over the largest such distance of the
    sample, so zero at keys and one in the middle of the widest gap.
    """
    if mode == "none":
        return np.zeros(keys.shape)
    if mode == "gauss":
        return np.where(keys, KEY_NOISE, 1.0)
    distance = np.stack([key_distances(mask, grid).min(1) for mask in keys])
    return distance / distance.max(1, keepdims=True).clip(1e-12)


def corrupt(tokens: np.ndarray, keys: np.ndarray, grid: Grid, settings: Refine, rng: np.random.Generator) -> np.ndarray:
    """Keep the tokens in `keys` (batch, tokens), interpolate the others, and add noise if the settings say so.

    Whole frames are interpolated as what they are: single nodes, whose features are those of all their tokens.
    """
    nodes = key_grid(grid, settings.keys)
    batch, count = len(tokens), int(np.prod(nodes))
    joined, kept = tokens.reshape(batch, count, -1), keys.reshape(batch, count, -1)[..., 0]
    filled = INTERPOLATIONS[settings.interpolation](joined.astype(np.float64), kept, nodes, settings)
    if settings.noise != "none":
        amplitude = settings.noise_scale * noise_amplitude(kept, nodes, settings.noise)
        filled += amplitude[..., None] * rng.standard_normal(filled.shape)
    return filled.reshape(tokens.shape)
