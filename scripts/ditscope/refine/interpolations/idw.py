"""Inverse distance weighting."""

import numpy as np

from ditscope.refine.known import Known, nearness
from ditscope.refine.settings import Refine
from ditscope.refine.weights import fill_by_weights, idw_weights


def fill(known: Known, settings: Refine) -> tuple[np.ndarray, np.ndarray]:
    """See `idw_weights`; confidence falls with the distance to the nearest key."""
    return fill_by_weights(known, idw_weights).reshape(known.tokens.shape), nearness(known)
