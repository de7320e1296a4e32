"""What an interpolation is given: token grids of which some nodes are known."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from ditscope.refine.grids import Grid, coordinates, squared_distances
from ditscope.refine.patches import patch_sides, unpatchify

CHUNK = 2**23  # most entries of the weight matrices that are held at once


@dataclass(frozen=True)
class Known:
    """A batch of token grids with masks of what is known. What is missing must not be looked at."""

    tokens: np.ndarray  # (batch, tokens, size) float64
    keys: np.ndarray  # (batch, nodes) bool
    grid: Grid  # tokens along each axis
    nodes: Grid  # nodes along each axis: the grid, or its frames
    patch: int  # side of a token along the last two axes

    @cached_property
    def values(self) -> np.ndarray:
        """(batch, nodes, features): a node's features are those of all its tokens."""
        return self.tokens.reshape(*self.keys.shape, -1)

    def samples(self, rows: slice) -> "Known":
        """Some samples of the batch."""
        return replace(self, tokens=self.tokens[rows], keys=self.keys[rows])

    def chunks(self, entries: int) -> list["Known"]:
        """The batch in parts, so that `entries` per sample stay below CHUNK together."""
        step = max(CHUNK // max(entries, 1), 1)
        return [self.samples(slice(i, i + step)) for i in range(0, len(self.keys), step)]


def spread(mask: np.ndarray, known: Known) -> np.ndarray:
    """A value per node (batch, nodes) as one per token (batch, tokens)."""
    return mask.repeat(known.tokens.shape[1] // mask.shape[1], axis=1)


def cells(tokens: np.ndarray, known: Known) -> np.ndarray:
    """Tokens (batch, tokens, size) as the cells that they are made of, (batch, channels, *space)."""
    return unpatchify(tokens, known.grid, known.patch)


def cell_keys(known: Known) -> np.ndarray:
    """Which cells are known, (batch, *space)."""
    values = prod(patch_sides(len(known.grid), known.patch))
    return cells(spread(known.keys, known)[..., None].repeat(values, -1), known)[:, 0]


def nearness(known: Known) -> np.ndarray:
    """1 / (1 + distance to the nearest key) of each node, (batch, nodes): 1 at keys.

    The confidence of interpolations that know nothing but the geometry.
    """
    points = coordinates(known.nodes)
    nearest = [squared_distances(points, points[mask]).min(1) for mask in known.keys]
    return 1 / (1 + np.sqrt(nearest))
