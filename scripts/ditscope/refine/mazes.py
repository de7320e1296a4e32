"""Mazes on a grid of cells: rooms on odd cells, walls between them, the shortest path from one room to another.

A maze of `rooms` rooms a side has 2 rooms + 1 cells a side. It is a spanning tree of the rooms, found by a depth-first
walk in random order, with some more walls taken out, so that there is more than one way.
"""

from collections import deque

import numpy as np

OPENED = 0.15  # share of the inner walls that are left, taken out once all rooms are joined
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def make_maze(rooms: int, rng: np.random.Generator) -> np.ndarray:
    """Walls (2 rooms + 1, 2 rooms + 1) bool of a random maze."""
    walls = np.ones((2 * rooms + 1,) * 2, bool)
    seen = np.zeros((rooms, rooms), bool)
    stack = [tuple(rng.integers(rooms, size=2))]
    seen[stack[0]] = True
    walls[1::2, 1::2] = False
    while stack:
        row, column = stack[-1]
        beside = [(row + a, column + b) for a, b in STEPS if 0 <= row + a < rooms and 0 <= column + b < rooms]
        if not (new := [room for room in beside if not seen[room]]):
            stack.pop()
            continue
        to = new[rng.integers(len(new))]
        walls[row + to[0] + 1, column + to[1] + 1] = False
        seen[to] = True
        stack.append(to)
    inner = [(r, c) for r in range(1, 2 * rooms) for c in range(1, 2 * rooms) if (r + c) % 2 and walls[r, c]]
    for index in rng.permutation(len(inner))[: round(OPENED * len(inner))]:
        walls[inner[index]] = False
    return walls


def shortest_path(walls: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> np.ndarray:
    """Cells (length, 2) of a shortest way through free cells, both ends with it; a breadth-first search."""
    came: dict[tuple[int, int], tuple[int, int]] = {goal: goal}
    queue = deque([goal])
    while queue and start not in came:
        cell = queue.popleft()
        for a, b in STEPS:
            to = cell[0] + a, cell[1] + b
            if not walls[to] and to not in came:
                came[to] = cell
                queue.append(to)
    if start not in came:
        raise ValueError(f"no way from {start} to {goal}")
    path = [start]
    while path[-1] != goal:
        path.append(came[path[-1]])
    return np.array(path)


def resampled(path: np.ndarray, steps: int) -> np.ndarray:
    """A path (length, 2) at `steps` points evenly along it, (2, steps) float32: row and column."""
    at = np.linspace(0, len(path) - 1, steps)
    return np.stack([np.interp(at, np.arange(len(path)), axis) for axis in path.T]).astype(np.float32)


def ends(rooms: int, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two rooms, as cells, at least `rooms` / 2 rooms apart."""
    while True:
        start, goal = 2 * rng.integers(rooms, size=(2, 2)) + 1
        if np.abs(start - goal).sum() >= rooms:
            return (int(start[0]), int(start[1])), (int(goal[0]), int(goal[1]))


def maze_tokens(walls: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> np.ndarray:
    """A maze as condition tokens (cells, 4 cells) float32, one per row of cells.

    A token has the walls of its row (1 wall, -1 free), which row it is, and where in it start and goal are.
    """
    side = len(walls)
    marks = np.zeros((2, side, side), np.float32)
    for mark, cell in zip(marks, (start, goal), strict=True):
        mark[cell] = 1
    return np.concatenate([np.where(walls, 1, -1), np.eye(side), *marks], 1).astype(np.float32)


def walls_of(text: np.ndarray) -> np.ndarray:
    """Walls (n, cells, cells) bool of condition tokens (n, cells, 4 cells)."""
    return text[..., : text.shape[-1] // 4] > 0


def draw(values: np.ndarray, text: np.ndarray, scale: int = 8, joined: bool = True) -> np.ndarray:
    """Pictures (n, side, side, 3) uint8 of paths (n, 2, steps) in their mazes (n, cells, 4 cells).

    Not `joined`: of the points alone.
    """
    cells = walls_of(text)
    side = cells.shape[1]
    pictures = np.where(cells, 60, 245).astype(np.uint8).repeat(scale, 1).repeat(scale, 2)[..., None].repeat(3, 3)
    along = np.linspace(0, values.shape[2] - 1, 16 * values.shape[2])
    for picture, path in zip(pictures, values, strict=True):
        dense = np.stack([np.interp(along, np.arange(path.shape[1]), axis) for axis in path])[:, : len(along) * joined]
        spots = np.rint((np.concatenate([dense, path], 1) + 0.5) * scale - 0.5).astype(int).clip(1, side * scale - 2)
        sizes = [0] * dense.shape[1] + [1] * path.shape[1]
        for (row, column), size in zip(spots.T, sizes, strict=True):
            picture[row - size : row + size + 1, column - size : column + size + 1] = (222, 28, 32)
    return pictures
