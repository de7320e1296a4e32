"""A captioner without weights: a caption is a hash of the image, so that studies can be tested without models.

It names a colour and a shape. There are 48 captions, so that a run of fixed seeds comes back to one soon.
"""

from collections.abc import Sequence
from itertools import product

from PIL import Image

from ditscope.core.identity import derived_seed
from ditscope.models.registry import check_captioning, check_source
from ditscope.models.settings import Model
from ditscope.shapes.world import VALUES, describe

NAMED = ("colour", "shape")
CAPTIONS = [describe(dict(zip(NAMED, values, strict=True))) for values in product(*(VALUES[n] for n in NAMED))]


def load_captioner(name: str, entry: Model, device: str | None = None) -> Model:
    """The registry entry itself, checked: there is nothing to load."""
    check_source(name, entry)
    check_captioning(name, entry)
    return entry


def caption(captioner: Model, images: list[Image.Image], seeds: Sequence[int] = ()) -> list[str]:
    """The caption of each image by its size and pixels, and by its seed (`seeds`, one per image) at a temperature."""
    drawn = seeds if captioner.temperature else [0] * len(images)
    return [
        CAPTIONS[derived_seed("dummy", image.size, image.tobytes().hex(), seed) % len(CAPTIONS)]
        for image, seed in zip(images, drawn, strict=True)
    ]
