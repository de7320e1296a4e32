"""Paths in a maze: row and column of every step, in cells; and whether they keep to the free ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ditscope.refine.adapter import Adapter
from ditscope.refine.mazes import walls_of


def load(about: Mapping[str, Any]) -> Adapter:
    """The adapter; a path has no picture without its maze, see `mazes.draw`."""
    return Adapter(None, None, metrics={"in_walls": in_walls, "off_walls": off_walls})


def in_walls(values: np.ndarray, truth: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Share of the steps of paths (n, 2, steps) that lie in a wall or outside the maze of `text` (n, rows, width)."""
    walls = walls_of(text)
    rows, columns = np.rint(values).astype(int).transpose(1, 0, 2)
    side = walls.shape[1]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    at = walls[np.arange(len(walls))[:, None], rows.clip(0, side - 1), columns.clip(0, side - 1)]
    return (at | ~inside).mean(1)


def off_walls(values: np.ndarray, truth: np.ndarray, text: np.ndarray) -> np.ndarray:
    """1.0 for a path no step of which lies in a wall, else 0.0."""
    return (in_walls(values, truth, text) == 0).astype(float)
