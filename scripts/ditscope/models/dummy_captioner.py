"""A captioner without weights: a caption is a hash of the image, so that studies can be tested without models.

It names a colour and a shape. There are 48 captions, so that a run of fixed seeds comes back to one soon.
"""

from collections.abc import Callable, Sequence
from itertools import product

from PIL import Image

from ditscope.core.identity import derived_seed
from ditscope.models.settings import Model
from ditscope.shapes.world import VALUES, describe

NAMED = ("colour", "shape")
CAPTIONS = [describe(dict(zip(NAMED, values, strict=True))) for values in product(*(VALUES[n] for n in NAMED))]


def load(name: str, entry: Model, device: str) -> Callable[..., list[str]]:
    """The function from images, and from the seeds of each at a temperature, to captions: nothing is read."""

    def caption(images: list[Image.Image], seeds: Sequence[int] = ()) -> list[str]:
        drawn = seeds or [0] * len(images)
        return [
            CAPTIONS[derived_seed("dummy", image.size, image.tobytes().hex(), seed) % len(CAPTIONS)]
            for image, seed in zip(images, drawn, strict=True)
        ]

    return caption
