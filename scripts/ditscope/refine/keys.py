"""Which nodes of a sample are known (keys): nested sets by level, protected nodes, and keys that are given.

A node is what is kept or missing as a whole: a patch, or a frame of a video.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ditscope.core.errors import InputError
from ditscope.refine.grids import Grid, coordinates
from ditscope.refine.positions import check_positions


def key_grid(grid: Grid, keys: str) -> Grid:
    """The grid of nodes: the tokens themselves (patches), or the frames of a video."""
    if keys == "frames" and len(grid) == 2:
        raise InputError("refine.keys: `frames`, but an image has none; use `patches`")
    return grid[:1] if keys == "frames" else grid


def key_counts(nodes: int, levels: int, minimum: int, schedule: str, kind: str = "patches") -> list[int]:
    """Number of keys at levels 1 to `levels`: falls strictly from below `nodes` to `minimum`.

    From hard to easy the counts grow linearly, by doubling, or by the factor (nodes / minimum)^(1 / levels).
    """
    if minimum < 1 or minimum + levels > nodes:
        raise InputError(f"refine.min_keys: {minimum} keys and {levels} levels do not fit into {nodes} {kind}")
    growth: dict[str, Callable[[int], float]] = {
        "linear": lambda n: minimum + (nodes - minimum) * n / levels,
        "doubling": lambda n: minimum * 2.0**n,
        "geometric": lambda n: minimum * (nodes / minimum) ** (n / levels),
    }
    counts = [minimum]
    for n in range(1, levels):
        # at least one more than the harder level, and room for the easier ones below the whole grid
        counts.append(int(np.clip(round(growth[schedule](n)), counts[-1] + 1, nodes - levels + n)))
    return counts[::-1]


def end_nodes(nodes: Grid) -> np.ndarray:
    """Mask (nodes,) of the first and last frame of a video, or step of a path."""
    if len(nodes) == 2:
        raise InputError("refine.endpoints: an image has no first and last frame; leave it false")
    return np.isin(coordinates(nodes)[:, 0], (0, nodes[0] - 1))


def draw_orders(rng: np.random.Generator, samples: int, nodes: int, protected: np.ndarray | None = None) -> np.ndarray:
    """A permutation of the nodes for each sample, (samples, nodes): its first K nodes are the keys of a level with K.

    So levels are nested: a harder one keeps a part of what an easier one keeps. Nodes of the mask `protected` (nodes,)
    come first, that is, are keys at every level.
    """
    priority = rng.random((samples, nodes))
    if protected is not None:
        priority -= protected
    return priority.argsort(1)


def key_masks(orders: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Masks (samples, nodes) of the first `counts` (samples,) nodes of each permutation (samples, nodes)."""
    return orders.argsort(1) < np.asarray(counts)[:, None]


def given_keys(positions: Sequence[int], nodes: int, kind: str = "frames") -> np.ndarray:
    """Mask (nodes,) of keys that are given by their positions from 0; refused as `check_positions` says."""
    check_positions(positions, nodes, kind)
    return np.isin(np.arange(nodes), positions)
