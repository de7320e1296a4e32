"""Mazes as text, drawn by hand: `#` wall, space or `.` free, `S` start, `G` goal, `a` to `z` waypoints in order."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ditscope.core.errors import InputError
from ditscope.refine.mazes import resampled, shortest_path

Cell = tuple[int, int]
FREE = " ."


@dataclass(frozen=True)
class Maze:
    """Walls (cells, cells) bool, and the cells that the path is to pass: start, waypoints, goal."""

    walls: np.ndarray
    stops: list[Cell]

    def legs(self) -> list[np.ndarray]:
        """Shortest ways (length, 2) from each stop to the next."""
        return [shortest_path(self.walls, a, b) for a, b in pairwise(self.stops)]

    def way(self, points: int) -> np.ndarray:
        """The shortest way by all stops, (2, points) float32, evenly along it."""
        legs = self.legs()
        return resampled(np.concatenate([legs[0], *(leg[1:] for leg in legs[1:])]), points)

    def positions(self, points: int) -> list[int]:
        """The point of `points`, evenly along the shortest way, that is nearest to each stop."""
        lengths = np.cumsum([0, *(len(leg) - 1 for leg in self.legs())])
        return np.rint(lengths / lengths[-1] * (points - 1)).astype(int).tolist()


def read_maze(path: Path) -> Maze:
    """Read a maze. Raises InputError, with row and column, for what is none: no square, no start, a stop in no room."""
    try:
        lines = path.read_text().rstrip("\n").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name a maze as text") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise InputError(f"{path}: no text; name a maze of the letters # . S G") from None
    for number, line in enumerate(lines):
        if len(line) != len(lines):
            raise InputError(f"{path}: row {number} has {len(line)} cells, of {len(lines)} rows; a maze is square")
    stops: dict[str, Cell] = {}
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            if letter in FREE + "#":
                continue
            if not (letter in "SG" or ("a" <= letter <= "z")):
                raise InputError(f"{path}: row {row}, column {column}: `{letter}`; cells are # . S G and a to z")
            if letter in stops:
                raise InputError(f"{path}: row {row}, column {column}: `{letter}` is there twice")
            stops[letter] = row, column
    for letter, what in (("S", "start"), ("G", "goal")):
        if letter not in stops:
            raise InputError(f"{path}: no {what}; mark its cell by {letter}")
    order = ["S", *sorted(stops.keys() - {"S", "G"}), "G"]
    walls = np.array([[letter == "#" for letter in line] for line in lines])
    border = np.concatenate([walls[0], walls[-1], walls[:, 0], walls[:, -1]])
    if not border.all():
        raise InputError(f"{path}: its border is open; put # around it")
    maze = Maze(walls, [stops[letter] for letter in order])
    try:
        maze.legs()
    except ValueError as error:
        raise InputError(f"{path}: {error}; open a wall") from None
    return maze
