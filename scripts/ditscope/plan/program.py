"""The integer program of plans: for each layer one column, at the least cost within a size."""

import math
from functools import reduce

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array


def cheapest(cost: np.ndarray, size: np.ndarray, permitted: np.ndarray, limit: int) -> np.ndarray:
    """The cheapest column of each layer within `limit`: an integer program, solved exactly by HiGHS.

    `cost`, `size` (int64) and `permitted` are (layers, columns). Binary variables x[l, c], one chosen for each layer:
    minimise sum cost x subject to sum size x <= limit.
    """
    layers, _ = np.nonzero(permitted)
    numbers = np.arange(len(layers))
    one_each = coo_array((np.ones(len(layers)), (layers, numbers)))
    # Small integers keep the size constraint exact within the solver's tolerances; a cost scale of 1e6 keeps the
    # differences between high bit widths, ten orders below the largest cost, above its absolute gap.
    unit = reduce(math.gcd, (int(s) for s in size[permitted])) or 1
    scale = 1e6 / (cost[permitted].max() or 1.0)
    solution = milp(
        c=cost[permitted] * scale,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint((size[permitted] // unit).reshape(1, -1), 0, limit // unit),
        ],
        integrality=np.ones(len(layers)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        raise RuntimeError(f"HiGHS found no plan within {limit}: {solution.message}")
    chosen = np.full(cost.shape, -1.0)
    chosen[permitted] = solution.x
    return chosen.argmax(axis=1)
