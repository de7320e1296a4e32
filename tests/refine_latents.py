"""Latents for the refiner's tests: a disc of one colour on a background of another, with a prompt that says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ditscope.core.shards import png_bytes, write_tar
from ditscope.models.settings import Model
from ditscope.refine.data_settings import Source
from ditscope.refine.dataset import Dataset, open_dataset
from ditscope.refine.prepare import prepare
from ditscope.refine.settings import Refine

# Settings with which every part trains in a second.
TINY = replace(
    Refine(),
    objective="drifting",
    codes=4,
    levels=3,
    min_keys=3,
    mae_steps=6,
    mae_batch=4,
    mae_width=8,
    mae_scales=2,
    steps=6,
    width=24,
    depth=1,
    heads=2,
    classes_per_step=2,
    generated_per_class=3,
    positives=4,
    unconditional=2,
    checkpoint_every=2,
)
COLOURS, BACKGROUNDS = ("red", "green", "blue"), ("white", "black")


def disc_latents(samples: int, side: int = 8, channels: int = 4, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Latents (samples, channels, side, side) and their prompts."""
    rng = np.random.default_rng(seed)
    colours = rng.standard_normal((len(COLOURS), channels))
    backgrounds = rng.standard_normal((len(BACKGROUNDS), channels))
    rows, columns = np.mgrid[:side, :side]
    latents, prompts = [], []
    for i in range(samples):
        c, b = i % len(COLOURS), i // len(COLOURS) % len(BACKGROUNDS)
        y, x = rng.uniform(side / 4, 3 * side / 4, 2)
        disc = np.hypot(rows - y, columns - x) < rng.uniform(side / 6, side / 3)
        clean = np.where(disc, colours[c][:, None, None], backgrounds[b][:, None, None])
        latents.append(clean + 0.05 * rng.standard_normal(clean.shape))
        prompts.append(f"a {COLOURS[c]} disc on a {BACKGROUNDS[b]} background")
    return np.stack(latents).astype(np.float32), prompts


def drifting_discs(samples: int, frames: int = 5, side: int = 8, channels: int = 4) -> tuple[np.ndarray, list[str]]:
    """Video latents (samples, channels, frames, side, side): the discs, fading from one background into another."""
    start, prompts = disc_latents(samples, side, channels)
    end, _ = disc_latents(samples, side, channels, seed=1)
    weight = np.linspace(0, 1, frames)[None, None, :, None, None]
    return (start[:, :, None] * (1 - weight) + end[:, :, None] * weight).astype(np.float32), prompts


def write_discs(path: Path, samples: int = 24, side: int = 8, channels: int = 4, seed: int = 0) -> Path:
    """A shard as the generate stage leaves it, of disc latents."""
    return write_latents(path, *disc_latents(samples, side, channels, seed))


def write_latents(path: Path, latents: np.ndarray, prompts: list[str]) -> Path:
    """A shard as the generate stage leaves it, of these latents and a black picture for each."""
    picture = png_bytes(np.zeros((16, 16, 3), np.uint8))
    write_tar(
        [
            {
                "__key__": f"{i:032x}",
                "png": picture,
                "json": {"prompt": prompt, "prompt_id": f"p{i:03d}", "seed": i},
                "latent.npy": latent,
            }
            for i, (latent, prompt) in enumerate(zip(latents, prompts, strict=True))
        ],
        path,
    )
    return path


def data_files(shard: Path, folder: Path) -> tuple[Path, Path]:
    """The refiner's data of such a shard, an eighth of it held out: the table of samples and data.json."""
    files = folder / "samples.parquet", folder / "data.json"
    source = Source(
        kind="generated",
        model="none",
        adapter="latents",
        text_encoder="",
        held_out=0.125,
        held_out_by="sample",
        dtype="float32",
    )
    prepare({"none": Model("flux")}, *files, folder / "data", images=[shard], source=source)
    return files


def data_of(shard: Path, folder: Path) -> Dataset:
    """The same, opened."""
    return open_dataset(*data_files(shard, folder))
