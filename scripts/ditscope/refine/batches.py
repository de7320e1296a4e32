"""Training batches of the refiner: samples are read, corrupted and told of in loader workers, not in the step.

A batch is a function of (seed, step, number) alone: a resumed training draws what an undisturbed one would, and
processes share out the batches that one process would accumulate.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ditscope.core.errors import InputError
from ditscope.refine.apply import Conditions, as_input
from ditscope.refine.corruption import corrupt
from ditscope.refine.dataset import Dataset as Data
from ditscope.refine.dataset import read_text, read_values
from ditscope.refine.drifting import sample_alpha
from ditscope.refine.grids import Grid
from ditscope.refine.keys import draw_orders, end_nodes, key_counts, key_grid, key_masks
from ditscope.refine.patches import patch_sides, patchify, token_grid
from ditscope.refine.processes import world_size
from ditscope.refine.refiner import RefinerInput
from ditscope.refine.settings import Refine

T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """What batches are drawn from: rows of a data set, their pseudo-classes, and the keys that a level keeps."""

    data: Data
    rows: np.ndarray  # rows of the data set
    codes: np.ndarray  # (samples,) pseudo-class of each of these
    members: dict[int, np.ndarray]  # which of `rows` are of each class that has any
    grid: Grid
    nodes: int  # patches, or frames, that a key is one of
    counts: list[int]  # keys at levels 1, 2, ...
    protected: np.ndarray  # (nodes,) bool, keys at every level


def samples_of(data: Data, split: str, codes: np.ndarray, settings: Refine) -> Samples:
    """The samples of a split with their pseudo-classes; `codes` has one of each row of the data set."""
    rows = data.rows(split)
    if not len(rows):
        raise InputError(f"refine: no samples in the split `{split}`; give more, or another `held_out`")
    if bad := [n for n, side in zip(data.space, patch_sides(len(data.space), settings.patch), strict=True) if n % side]:
        raise InputError(f"refine.patch: {settings.patch} does not divide the values' side {bad[0]}; choose a divisor")
    grid = token_grid(data.space, settings.patch)
    nodes = key_grid(grid, settings.keys)
    count = int(np.prod(nodes))
    counts = key_counts(count, settings.levels, settings.min_keys, settings.schedule, settings.keys)
    protected = end_nodes(nodes) if settings.endpoints else np.zeros(count, bool)
    if protected.sum() > settings.min_keys:
        raise InputError(
            f"refine.min_keys: {settings.min_keys} are fewer than the {protected.sum()} endpoints; raise it"
        )
    own = codes[rows]
    members = {int(code): rows[own == code] for code in np.unique(own)}
    return Samples(data, rows, own, members, grid, count, counts, protected)


@dataclass(frozen=True)
class Banks:
    """Real samples that the drifting loss compares a batch with, and the guidance of each class."""

    alpha: Tensor  # (classes,)
    positives: Tensor  # (classes * positives, channels, *space)
    unconditional: Tensor  # (unconditional, channels, *space), shared by the classes
    sources: Tensor  # (classes, unconditional + positives) which row each is
    own: Tensor  # (classes, generated, unconditional + positives) bool: the sample that a generated one was made from


@dataclass(frozen=True)
class Batch:
    """What is refined, what it should be, and what a drifting loss compares it with."""

    inputs: RefinerInput  # where there are banks, class by class
    clean: Tensor  # (batch, tokens, size)
    banks: Banks | None


def draw_batch(samples: Samples, settings: Refine, step: int, number: int) -> Batch:
    """The batch of a step. Without drifting: the next samples of an epoch. With it: classes evenly, samples of each."""
    rng = np.random.default_rng([settings.seed, step, number])
    if settings.objective == "paired":
        size = settings.classes_per_step * settings.generated_per_class
        rows = epoch_rows(samples.rows, settings.seed, number_of_batch(step, number, settings) * size, size)
        return corrupted_batch(samples, rows, np.ones(size, np.float32), settings, rng)
    classes = without_replacement(rng, np.array(list(samples.members)), settings.classes_per_step)
    rows = np.stack([without_replacement(rng, samples.members[c], settings.generated_per_class) for c in classes])
    draws, atoms = torch.from_numpy(rng.random((2, len(classes)), dtype=np.float32))
    alpha = sample_alpha(draws, atoms, settings.alpha_power, settings.alpha_atom, settings.alpha_choices)
    each = alpha.repeat_interleave(settings.generated_per_class).numpy()
    return corrupted_batch(
        samples, rows.ravel(), each, settings, rng, draw_banks(samples, classes, rows, alpha, settings, rng)
    )


def number_of_batch(step: int, number: int, settings: Refine) -> int:
    """How many batches were drawn before this one, over all processes."""
    return step * settings.grad_accum * world_size() + number


def epoch_rows(rows: np.ndarray, seed: int, start: int, count: int) -> np.ndarray:
    """`count` rows from place `start` of epochs without end, each of which has every row once, in its own order."""
    epochs, places = np.divmod(np.arange(start, start + count), len(rows))
    return rows[[epoch_order(len(rows), seed, int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)]]


@lru_cache(2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the samples in an epoch."""
    return np.random.default_rng([seed, count, epoch]).permutation(count)


def without_replacement(rng: np.random.Generator, pool: np.ndarray, count: int) -> np.ndarray:
    """`count` draws from `pool` that repeat an item only when every other one has been drawn as often."""
    rounds = max(-(-count // len(pool)), 1)
    return np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:count]


def draw_banks(
    samples: Samples, classes: np.ndarray, rows: np.ndarray, alpha: Tensor, settings: Refine, rng: np.random.Generator
) -> Banks:
    """Positives of each class and unconditional samples, both without replacement, for `rows` (classes, generated)."""
    positives = np.stack([without_replacement(rng, samples.members[c], settings.positives) for c in classes])
    unconditional = without_replacement(rng, samples.rows, settings.unconditional)
    shared = np.broadcast_to(unconditional, (len(classes), len(unconditional)))
    sources = np.concatenate([shared, positives], 1)
    return Banks(
        alpha=alpha,
        positives=torch.from_numpy(read_values(samples.data, positives.ravel())),
        unconditional=torch.from_numpy(read_values(samples.data, unconditional)),
        sources=torch.from_numpy(sources),
        own=torch.from_numpy(rows[:, :, None] == sources[:, None]),
    )


def corrupted_batch(
    samples: Samples,
    rows: np.ndarray,
    alpha: np.ndarray,
    settings: Refine,
    rng: np.random.Generator,
    banks: Banks | None = None,
) -> Batch:
    """Corrupt rows to levels drawn evenly; some lose their text or their pseudo-class, so that both can be left out."""
    levels = rng.integers(1, settings.levels + 1, len(rows))
    orders = draw_orders(rng, len(rows), samples.nodes, samples.protected)
    clean = patchify(read_values(samples.data, rows), settings.patch)
    conditions = conditions_of(samples, rows, alpha, settings, rng)
    inputs = corrupted_input(samples, clean, levels, orders, conditions, settings, rng, rows)
    return Batch(inputs, torch.from_numpy(clean), banks)


def conditions_of(
    samples: Samples, rows: np.ndarray, alpha: np.ndarray, settings: Refine, rng: np.random.Generator | None = None
) -> Conditions:
    """Text, pseudo-class and guidance of rows; with `rng` texts and classes are dropped as the settings say."""
    text, words = read_text(samples.data, rows)
    codes = samples.codes[np.searchsorted(samples.rows, rows)].astype(np.int64)
    if rng is not None:
        words = words & (rng.random(len(rows)) >= settings.text_dropout)[:, None]
        codes = np.where(rng.random(len(rows)) < settings.class_dropout, settings.codes, codes)
    return Conditions(*map(torch.from_numpy, (text, words, codes, alpha)))


def corrupted_input(
    samples: Samples,
    clean: np.ndarray,
    levels: np.ndarray,
    orders: np.ndarray,
    conditions: Conditions,
    settings: Refine,
    rng: np.random.Generator,
    rows: np.ndarray,
) -> RefinerInput:
    """Clean tokens (batch, tokens, size), corrupted to `levels` (batch,) with the first of `orders` as keys.

    Keys that scheduled sampling replaces show another sample of the same pseudo-class, as a model that only knows that
    would.
    """
    keys = key_masks(orders, np.array(samples.counts)[levels - 1])
    proposals = None
    if settings.key_replacement:
        codes = samples.codes[np.searchsorted(samples.rows, rows)]
        others = np.array([rng.choice(samples.members[int(code)]) for code in codes])
        proposals = patchify(read_values(samples.data, others), settings.patch)
    corrupted = corrupt(clean, keys, samples.grid, settings, rng, samples.protected, proposals)
    return as_input(corrupted, keys, conditions)


def draw_latents(samples: Samples, settings: Refine, step: int, number: int) -> tuple[Tensor, Tensor]:
    """Values (batch, channels, *space) for the autoencoder, and scores (batch, tokens) by which patches are hidden."""
    rng = np.random.default_rng([settings.seed, step, number])
    size, tokens = settings.mae_batch, int(np.prod(samples.grid))
    rows = epoch_rows(samples.rows, settings.seed, number_of_batch(step, number, settings) * size, size)
    scores = rng.random((size, tokens), dtype=np.float32)
    return torch.from_numpy(read_values(samples.data, rows)), torch.from_numpy(scores)


# Loading ------------------------------------------------------------------------------------------------------------


class Draws(Dataset):
    """Batches by (step, number), for torch's loader."""

    def __init__(self, draw: Any, arguments: tuple) -> None:
        self.draw, self.arguments = draw, arguments

    def __getitem__(self, index: tuple[int, int]) -> Any:
        return self.draw(*self.arguments, *index)


def load_batches(draw: Any, arguments: tuple, workers: int, numbers: list[tuple[int, int]]) -> Iterator[Any]:
    """`draw(*arguments, step, number)` of all `numbers` in order, made by `workers` processes ahead of their use."""
    return iter(
        DataLoader(Draws(draw, arguments), batch_size=None, sampler=numbers, num_workers=workers, collate_fn=same)
    )


def same(batch: T) -> T:
    """What the loader makes of a batch: nothing else."""
    return batch


def to_device(batch: T, device: torch.device) -> T:
    """A dataclass of tensors, dataclasses of tensors and None on another device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if not is_dataclass(batch):
        return batch
    moved: Any = {f.name: to_device(getattr(batch, f.name), device) for f in fields(batch)}
    return replace(cast(Any, batch), **moved)
