"""Shortest paths through random mazes, each with its maze as the condition."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ditscope.refine.data_settings import Source
from ditscope.refine.mazes import ends, make_maze, maze_tokens, resampled, shortest_path
from ditscope.refine.samples import Damage, Sample

HELD_OUT_BY = "label"


def samples(source: Source, images: Sequence[Path], damage: Damage) -> Iterator[Sample]:
    """`count` mazes of `rooms` rooms a side, each with a path of `path_steps` points; a label per maze."""
    for number in range(source.count):
        rng = np.random.default_rng((source.seed, number))
        walls = make_maze(source.rooms, rng)
        start, goal = ends(source.rooms, rng)
        path = resampled(shortest_path(walls, start, goal), source.path_steps)
        yield Sample(
            key=f"{number:08d}",
            prompt="from row {} column {} to row {} column {}".format(*start, *goal),
            label=hashlib.sha256(np.packbits(walls).tobytes()).hexdigest()[:16],
            seed=number,
            values=path,
            text=maze_tokens(walls, start, goal),
        )
