"""Linear interpolation between keys, in their Delaunay simplices on a grid."""

import numpy as np

from ditscope.refine.known import Known, nearness
from ditscope.refine.settings import Refine
from ditscope.refine.weights import fill_by_weights, linear_weights


def fill(known: Known, settings: Refine) -> tuple[np.ndarray, np.ndarray]:
    """See `linear_weights`; confidence falls with the distance to the nearest key."""
    return fill_by_weights(known, linear_weights).reshape(known.tokens.shape), nearness(known)
