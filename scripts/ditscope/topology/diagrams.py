"""Persistence diagrams of points, and which points are repeated."""

import numpy as np
from ripser import ripser
from scipy.spatial.distance import pdist, squareform

from ditscope.embed.files import sampled

SAME = 1e-5  # states of unit length closer than this are one state: float32 embeddings vary so much with the batch


def persistence(x: np.ndarray, max_dimension: int) -> list[np.ndarray]:
    """Persistence diagrams H0 ... H_max of the Vietoris-Rips filtration of points `x` (n, d), Euclidean distance.

    One array (bars, 2) of birth and death a dimension, sorted; an infinite death is inf; ripser leaves zero-length bars
    out. Bauer 2021. Up to O(n^(max + 2)) simplices: with H2, 100 points take 0.2 s and 1,000 several minutes.
    """
    if len(x) == 1:  # pdist of one point is empty, which ripser does not take
        return [np.array([[0.0, np.inf]]), *(np.zeros((0, 2)) for _ in range(max_dimension))]
    diagrams = ripser(squareform(pdist(x)), maxdim=max_dimension, distance_matrix=True)["dgms"]
    return [d[np.lexsort((d[:, 1], d[:, 0]))].astype(np.float64) for d in diagrams]


def repeated(x: np.ndarray) -> np.ndarray:
    """Which of the points `x` (n, d) equal an earlier one, to within `SAME` (n,)."""
    if len(x) < 2:
        return np.zeros(len(x), bool)
    return np.tril(squareform(pdist(x)) <= SAME, k=-1).any(axis=1)


def duplicates(x: np.ndarray) -> int:
    """How many of the points `x` (n, d) equal an earlier one, to within `SAME`."""
    return int(repeated(x).sum())


def some(x: np.ndarray, most: int) -> np.ndarray:
    """The rows of `x` (n, d), or a fixed random sample of `most` of them in order (0: all)."""
    return x[sampled(len(x), most)]
