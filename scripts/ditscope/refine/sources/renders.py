"""Pictures of the shapes world: every combination of attributes as often as every other, in several wordings."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ditscope.refine.data_settings import Source
from ditscope.refine.samples import Damage, Sample
from ditscope.shapes.world import TEMPLATES, all_scenes, caption, held_out, render

HELD_OUT_BY = "attributes"


def samples(source: Source, images: Sequence[Path], damage: Damage) -> Iterator[Sample]:
    """`count` renders; a combination comes again only when all have come. Held out are those of `shapes.world`."""
    scenes, kept = all_scenes(), set(held_out())
    for number in range(source.count):
        turn, place = divmod(number, len(scenes))
        order = np.random.default_rng((source.seed, turn)).permutation(len(scenes))
        scene, rng = scenes[order[place]], np.random.default_rng((source.seed, turn, place))
        yield Sample(
            key=f"{number:08d}",
            prompt=caption(scene, int(rng.integers(len(TEMPLATES)))),
            label=caption(scene),
            seed=number,
            held_out=scene in kept,
            pictures=np.asarray(render(scene, rng)),
        )
