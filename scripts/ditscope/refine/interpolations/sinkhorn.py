"""Missing frames by optimal transport between key frames."""

import numpy as np

from ditscope.refine.interpolations.flow import resized
from ditscope.refine.known import Known
from ditscope.refine.settings import Refine
from ditscope.refine.warps import fill_by_flow

FAR = 1.0  # weight of squared distance on the grid beside that of features, each over its mean
ENTROPY = 0.005  # regularisation, in units of the mean cost
MASS = 0.5  # price of mass that comes or goes, in the same units: what is covered need not travel
ITERATIONS = 100
MOST_CELLS = 1024  # of a frame that is matched; a finer one is matched at a coarser scale


def fill(known: Known, settings: Refine) -> tuple[np.ndarray, np.ndarray]:
    """See `fill_by_flow` and `transport_flow`."""
    return fill_by_flow(known, transport_flow, "sinkhorn")


def transport_flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Flow (2, rows, columns) from frame a to frame b: the mean place that the plan sends each cell to."""
    size = a.shape[1:]
    scale = max(int(np.ceil(np.log2(np.prod(size) / MOST_CELLS) / 2)), 0)
    small = tuple(max(-(-n // 2**scale), 1) for n in size)
    places = np.indices(small).reshape(2, -1).T.astype(float)
    near, far = (resized(x, small, scale).reshape(len(x), -1).T for x in (a, b))
    features = squared(near, far)
    steps = squared(places, places)
    plan = transport_plan(
        features / max(features.mean(), 1e-12) + FAR * steps / max(steps.mean(), 1e-12), ENTROPY, MASS
    )
    mean = plan @ places / plan.sum(1, keepdims=True)
    flow = (mean - places).T.reshape(2, *small)
    return resized(flow, size, 0) * (np.array(size) / small)[:, None, None]


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances (len(x), len(y)) of rows."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)


def transport_plan(cost: np.ndarray, entropy: float, mass: float) -> np.ndarray:
    """Entropic plan (n, m) between even masses for a cost matrix (Cuturi 2013), marginals held by a price of `mass`.

    `mass` is the factor of the Kullback-Leibler divergence of each marginal (Chizat et al. 2018); with infinity the
    marginals are exact.
    """
    kernel = np.maximum(np.exp(-cost / entropy), 1e-200)
    power = mass / (mass + entropy) if np.isfinite(mass) else 1.0
    rows, columns = np.ones(len(cost)), np.ones(cost.shape[1])
    for _ in range(ITERATIONS):
        rows = (1 / len(cost) / (kernel @ columns)) ** power
        columns = (1 / cost.shape[1] / (kernel.T @ rows)) ** power
    return rows[:, None] * kernel * columns
