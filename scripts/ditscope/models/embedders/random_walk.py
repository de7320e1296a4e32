"""The control of every embedding: a random walk in place of a model, which needs no weights and no torch."""

import numpy as np

from ditscope.core.identity import derived_seed

FAMILY = "random-walk"


def random_walk(run_id: str, length: int, dimension: int) -> np.ndarray:
    """`length` states (length, dimension) float32 of a Gaussian random walk that the run id determines.

    Steps are independent N(0, I / dimension), of unit mean square length, so that the mean squared displacement over
    a lag equals the lag. The first state is one step from the origin; a longer walk continues a shorter one.
    """
    draws = np.random.default_rng(derived_seed(FAMILY, run_id)).standard_normal((length, dimension))
    return (draws / np.sqrt(dimension)).cumsum(axis=0).astype(np.float32)
