"""Latents of generated images as one array, with the records that say what each one is."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ditscope.core.errors import InputError
from ditscope.core.shards import samples_of_runs
from ditscope.refine.patches import patch_sides


@dataclass(frozen=True)
class LatentSet:
    """Standardised latents: zero mean and unit variance in each channel over the whole set."""

    values: np.ndarray  # (samples, channels, *space) float32
    mean: np.ndarray  # (channels,) of the latents as stored
    std: np.ndarray  # (channels,)
    records: list[dict[str, Any]]  # json of each sample, with its `key`

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def space(self) -> tuple[int, ...]:
        """Size of a latent along its spatial (or temporal) axes."""
        return self.values.shape[2:]


def read_latents(images: list[Path], patch: int) -> LatentSet:
    """Read `latent.npy` and `json` of every run of WebDataset shards, in order.

    Raises InputError where a sample has no latent, latents differ in shape, a side is no multiple of `patch`, or a
    value is not finite.
    """
    latents: list[np.ndarray] = []
    records: list[dict[str, Any]] = []
    runs: set[tuple] = set()
    for path in images:
        for sample in samples_of_runs(path):
            if "latent.npy" not in sample:
                raise InputError(f"{path}: sample {sample['__key__']} has no latent.npy; generate the shard again")
            latent = sample["latent.npy"].astype(np.float32)
            if latents and latent.shape != latents[0].shape:
                shapes = f"{latent.shape}, the first has {latents[0].shape}"
                raise InputError(f"{path}: sample {sample['__key__']} has a latent {shapes}; refine one size at a time")
            if not np.isfinite(latent).all():
                raise InputError(f"{path}: sample {sample['__key__']} has NaN or Inf in its latent; generate it again")
            run = tuple(sample["json"].get(name) for name in ("request_hash", "prompt_id", "seed"))
            if run in runs:
                what = f"the run of prompt_id `{run[1]}`, seed {run[2]}"
                raise InputError(f"{path}: {what}, is there more than once; give each shard once")
            runs.add(run)
            latents.append(latent)
            records.append(sample["json"] | {"key": sample["__key__"]})
    if not latents:
        raise InputError(f"{', '.join(map(str, images)) or 'images'}: no samples to refine; generate images first")
    space = latents[0].shape[1:]
    if bad := [n for n, side in zip(space, patch_sides(len(space), patch), strict=True) if n % side]:
        raise InputError(f"refine.patch: {patch} does not divide the latents' side {bad[0]}; choose a divisor")
    values = np.stack(latents)
    axes = (0, *range(2, values.ndim))
    mean, std = values.mean(axes, dtype=np.float64), values.std(axes, dtype=np.float64) + 1e-6
    values = (values - expand(mean, values.ndim)) / expand(std, values.ndim)
    return LatentSet(values.astype(np.float32), mean.astype(np.float32), std.astype(np.float32), records)


def expand(channels: np.ndarray, ndim: int) -> np.ndarray:
    """A value for each channel, shaped to broadcast over (batch, channels, *space) of `ndim` axes."""
    return channels.reshape(1, -1, *[1] * (ndim - 2))
