"""Films of moving shapes: every combination of attributes as often as every other, in several wordings."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ditscope.refine.data_settings import Source
from ditscope.refine.samples import Damage, Sample
from ditscope.shapes.moving import TEMPLATES, all_moves, describe_move, held_out_moves, render_move

HELD_OUT_BY = "attributes"


def samples(source: Source, images: Sequence[Path], damage: Damage) -> Iterator[Sample]:
    """`count` films of `frames` frames; a combination comes again only when all have come."""
    moves, kept = all_moves(), held_out_moves()
    for number in range(source.count):
        turn, place = divmod(number, len(moves))
        order = np.random.default_rng((source.seed, turn)).permutation(len(moves))
        move, rng = moves[order[place]], np.random.default_rng((source.seed, turn, place))
        yield Sample(
            key=f"{number:08d}",
            prompt=describe_move(move, int(rng.integers(len(TEMPLATES)))),
            label=describe_move(move),
            seed=number,
            held_out=move in kept,
            pictures=render_move(move, source.frames, rng),
        )
