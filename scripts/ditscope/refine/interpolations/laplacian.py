"""Edge-aware harmonic interpolation: a graph Laplacian whose edges are weakened where features change."""

import numpy as np
from scipy import sparse
from scipy.linalg import solveh_banded

from ditscope.refine.grids import Grid, coordinates, grid_edges
from ditscope.refine.known import Known, cell_keys, cells, nearness
from ditscope.refine.patches import patchify
from ditscope.refine.settings import Refine
from ditscope.refine.weights import fill_by_weights, idw_weights

EDGE_FLOOR = 1e-6  # smallest edge weight: keeps every node connected to a key


def fill(known: Known, settings: Refine) -> tuple[np.ndarray, np.ndarray]:
    """Fill missing tokens harmonically on the grid's graph.

    With U the missing and K the known nodes, solves (L_UU + lambda_reg I) X_U = -L_UK X_K + lambda_reg X0, X0 being
    the inverse-distance fill that the edge weights are read from. Pulling towards X0, not towards zero, keeps constants
    and the maximum principle exact. In `feature` space a node is a patch (or a frame) and its features are all values
    of it; in `pixel` space a node is one cell of the picture or latent, and its features are the channels.
    """
    start = fill_by_weights(known, idw_weights).reshape(known.tokens.shape)
    if settings.laplacian_space == "feature":
        nodes, keys, values = known.nodes, known.keys, start.reshape(*known.keys.shape, -1)
        return harmonic(values, keys, nodes, settings).reshape(start.shape), nearness(known)
    picture, mask = cells(start, known), cell_keys(known)
    values = np.moveaxis(picture, 1, -1).reshape(len(picture), -1, picture.shape[1])
    solved = harmonic(values, mask.reshape(len(mask), -1), mask.shape[1:], settings)
    filled = np.moveaxis(solved.reshape(len(mask), *mask.shape[1:], -1), -1, 1)
    return patchify(filled, known.patch), nearness(known)


def harmonic(start: np.ndarray, keys: np.ndarray, grid: Grid, settings: Refine) -> np.ndarray:
    """Solve for the missing nodes of values (batch, nodes, features), `start` being keys and first guess in one."""
    order = narrow(grid)
    columns = len(order) // max(grid)  # about the width of the band
    batch = Known(start, keys, grid, grid, 1)
    parts = [solve(part.tokens, part.keys, grid, order, settings) for part in batch.chunks(len(order) * (columns + 2))]
    return np.concatenate(parts)


def narrow(grid: Grid) -> np.ndarray:
    """Nodes in C order with the longest axis first, which keeps neighbours close to each other."""
    axes = sorted(range(len(grid)), key=lambda axis: -grid[axis])
    return np.arange(np.prod(grid)).reshape(grid).transpose(axes).ravel()


def solve(start: np.ndarray, keys: np.ndarray, grid: Grid, order: np.ndarray, settings: Refine) -> np.ndarray:
    """The same for samples that are solved at once, as one banded system (Cholesky)."""
    edges = grid_edges(grid, settings.neighbours == 8)
    laplacian = graph_laplacian(edge_weights(start, grid, edges, settings), edges, start.shape[1])
    values, known = start.reshape(-1, start.shape[-1]), keys.ravel()
    missing = sparse.diags_array((~known).astype(float))
    ridge = np.where(known, 1.0, settings.lambda_reg)
    system = missing @ laplacian @ missing + sparse.diags_array(ridge)
    right = ridge[:, None] * values - missing @ (laplacian @ np.where(known[:, None], values, 0.0))
    rows = (np.arange(len(start))[:, None] * len(order) + order).ravel()
    filled = np.empty_like(values)
    filled[rows] = solveh_banded(banded(system[rows][:, rows]), right[rows], lower=True, check_finite=False)
    return np.where(known[:, None], values, filled).reshape(start.shape)


def banded(matrix: sparse.csr_array) -> np.ndarray:
    """The lower band of a symmetric matrix, as LAPACK stores it: entry (i, j) at [i - j, j]."""
    lower = sparse.tril(matrix).tocoo()
    below = lower.row - lower.col
    band = np.zeros((int(below.max()) + 1, matrix.shape[0]))
    band[below, lower.col] = lower.data
    return band


def edge_weights(values: np.ndarray, grid: Grid, edges: np.ndarray, settings: Refine) -> np.ndarray:
    """Weights (batch, edges) exp(-m / 2 sigma_feature^2 - d^2 / 2 sigma_space^2), at least EDGE_FLOOR.

    m is the mean squared difference of the features at both ends, d their distance in steps of the grid.
    """
    difference = ((values[:, edges[:, 0]] - values[:, edges[:, 1]]) ** 2).mean(-1)
    points = coordinates(grid)
    squared = ((points[edges[:, 0]] - points[edges[:, 1]]) ** 2).sum(-1)
    exponent = difference / (2 * settings.sigma_feature**2) + squared / (2 * settings.sigma_space**2)
    return np.maximum(np.exp(-exponent), EDGE_FLOOR)


def graph_laplacian(weights: np.ndarray, edges: np.ndarray, nodes: int) -> sparse.csr_array:
    """Block-diagonal graph Laplacian (batch * nodes, batch * nodes) of edge weights (batch, edges).

    Each edge adds w to both diagonal entries and -w to both others; building the matrix from triplets sums entries at
    one place, which indexed assignment would not.
    """
    batch = len(weights)
    offsets = nodes * np.arange(batch)[:, None]
    a, b = ((edges[:, side] + offsets).ravel() for side in (0, 1))
    w = weights.ravel()
    triplets = (np.concatenate([w, w, -w, -w]), (np.concatenate([a, b, a, b]), np.concatenate([a, b, b, a])))
    return sparse.coo_array(triplets, shape=(batch * nodes, batch * nodes)).tocsr()
