"""Grids of any number of axes: (rows, columns) of an image, (frames, rows, columns) of a video, (steps,) of a path."""

from itertools import product

import numpy as np

Grid = tuple[int, ...]


def coordinates(grid: Grid) -> np.ndarray:
    """Integer position of each token, (tokens, axes), in C order of the grid."""
    return np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))


def grid_edges(grid: Grid, diagonals: bool = False) -> np.ndarray:
    """Pairs (edges, 2) of tokens that are neighbours along one axis, or also along several at once.

    Of an image these are 4 and 8 neighbours of each token.
    """
    index = np.arange(np.prod(grid)).reshape(grid)
    pairs = []
    for step in product((0, 1, -1), repeat=len(grid)):
        moved = [s for s in step if s]
        if not moved or moved[0] < 0 or (len(moved) > 1 and not diagonals):
            continue  # of a step and its opposite one is enough
        starts = tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(step, grid, strict=True))
        stops = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(step, grid, strict=True))
        pairs.append(np.stack([index[starts].ravel(), index[stops].ravel()], -1))
    return np.concatenate(pairs)


def squared_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (..., points, others) of positions (points, axes) and (..., others, axes)."""
    return sum((points[:, None, a] - others[..., None, :, a]).astype(float) ** 2 for a in range(points.shape[1]))
