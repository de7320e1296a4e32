"""Linear interpolation, smoothed over the grid."""

from functools import partial

import numpy as np

from ditscope.refine.known import Known, nearness
from ditscope.refine.settings import Refine
from ditscope.refine.weights import fill_by_weights, smoothed_weights


def fill(known: Known, settings: Refine) -> tuple[np.ndarray, np.ndarray]:
    """See `smoothed_weights`; confidence falls with the distance to the nearest key."""
    weights = partial(smoothed_weights, sigma=settings.sigma_space)
    return fill_by_weights(known, weights).reshape(known.tokens.shape), nearness(known)
