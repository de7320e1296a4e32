"""Noise of any shape, smooth enough that interpolation has something to do: for tests and measurements of speed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ditscope.refine.data_settings import Source
from ditscope.refine.samples import Damage, Sample

HELD_OUT_BY = "sample"
CLASSES = 8
WORDS, WIDTH = 4, 16


def samples(source: Source, images: Sequence[Path], damage: Damage) -> Iterator[Sample]:
    """`count` samples of `shape`, one of 8 classes' means and noise, with tokens that tell the class."""
    means = np.random.default_rng(source.seed).standard_normal(
        (CLASSES, source.shape[0], *[1] * (len(source.shape) - 1))
    )
    for number in range(source.count):
        rng = np.random.default_rng((source.seed, number))
        code = int(rng.integers(CLASSES))
        text = np.full((WORDS, WIDTH), 0.1, np.float32)
        text[:, code] = 1
        yield Sample(
            key=f"{number:08d}",
            prompt=f"noise of class {code}",
            label=f"class {code}",
            seed=number,
            values=means[code] + rng.standard_normal(source.shape, dtype=np.float32),
            text=text,
        )
