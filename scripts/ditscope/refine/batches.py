"""Training batches of the refiner: classes in balance, samples without replacement, corrupted inputs, guidance."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.refine.corruption import corrupt
from ditscope.refine.drifting import sample_alpha
from ditscope.refine.keys import draw_orders, end_nodes, key_counts, key_grid, key_masks
from ditscope.refine.latents import LatentSet
from ditscope.refine.patches import patchify, token_grid
from ditscope.refine.settings import Refine


@dataclass(frozen=True)
class TrainingSet:
    """What batches are drawn from."""

    latents: np.ndarray  # (samples, channels, *space), standardised
    tokens: np.ndarray  # (samples, tokens, size), the same as patches
    codes: np.ndarray  # (samples,) pseudo-class of each
    members: dict[int, np.ndarray]  # rows of each class that has any
    grid: tuple[int, ...]
    nodes: int  # patches, or frames, that a key is one of
    counts: list[int]  # keys at levels 1, 2, ...
    protected: np.ndarray  # (nodes,) bool, keys at every level


@dataclass(frozen=True)
class RefinerInput:
    """Arguments of the refiner for a batch, and the clean tokens that it started from."""

    corrupted: Tensor  # (batch, tokens, size)
    anchors: Tensor  # (batch, tokens) bool
    classes: Tensor  # (batch,)
    levels: Tensor  # (batch,) from 1
    alpha: Tensor  # (batch,)
    clean: Tensor  # (batch, tokens, size)


def training_set(latents: LatentSet, codes: np.ndarray, settings: Refine) -> TrainingSet:
    """Cut latents into tokens and list the members of each pseudo-class."""
    grid = token_grid(latents.space, settings.patch)
    nodes = key_grid(grid, settings.keys)
    count = int(np.prod(nodes))
    counts = key_counts(count, settings.levels, settings.min_anchors, settings.schedule, settings.keys)
    protected = end_nodes(nodes) if settings.endpoints else np.zeros(count, bool)
    if protected.sum() > settings.min_anchors:
        raise InputError(
            f"refine.min_anchors: {settings.min_anchors} are fewer than the {protected.sum()} endpoints; raise it"
        )
    members = {int(code): np.flatnonzero(codes == code) for code in np.unique(codes)}
    tokens = patchify(latents.values, settings.patch)
    return TrainingSet(latents.values, tokens, codes, members, grid, count, counts, protected)


def without_replacement(rng: np.random.Generator, pool: np.ndarray, count: int) -> np.ndarray:
    """`count` draws from `pool` that repeat an item only when every other one has been drawn as often."""
    rounds = max(-(-count // len(pool)), 1)
    return np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:count]


def refiner_input(
    data: TrainingSet,
    rows: np.ndarray,
    levels: np.ndarray,
    alpha: Tensor,
    settings: Refine,
    rng: np.random.Generator,
    orders: np.ndarray | None = None,
) -> RefinerInput:
    """Corrupt samples `rows` to `levels`, each with keys of its own.

    Keys are the first of the permutations `orders` (samples, nodes), which are drawn where none are given. Keys that
    scheduled sampling replaces show another sample of the same pseudo-class, as a model that only knows that would.
    """
    clean = data.tokens[rows]
    if orders is None:
        orders = draw_orders(rng, len(rows), data.nodes, data.protected)
    keys = key_masks(orders, np.array(data.counts)[levels - 1])
    proposals = None
    if settings.key_replacement:
        proposals = data.tokens[[rng.choice(data.members[int(code)]) for code in data.codes[rows]]]
    corrupted = corrupt(clean, keys, data.grid, settings, rng, data.protected, proposals).tokens
    return RefinerInput(
        corrupted=torch.from_numpy(corrupted.astype(np.float32)),
        anchors=torch.from_numpy(keys.repeat(clean.shape[1] // data.nodes, axis=1)),
        classes=torch.from_numpy(data.codes[rows].astype(np.int64)),
        levels=torch.from_numpy(levels.astype(np.int64)),
        alpha=alpha,
        clean=torch.from_numpy(clean),
    )


@dataclass(frozen=True)
class Batch:
    """One drifting batch: what is refined, and the rows of real samples that it is compared with."""

    inputs: RefinerInput  # classes * generated_per_class samples, class by class
    rows: np.ndarray  # (classes, generated_per_class) rows of the samples that these were made from
    alpha: Tensor  # (classes,)
    positives: np.ndarray  # (classes, positives) rows
    unconditional: np.ndarray  # (unconditional,) rows, shared by the classes


def draw_batch(data: TrainingSet, settings: Refine, rng: np.random.Generator) -> Batch:
    """Draw classes evenly, then samples of each to refine, positives of the same class, and any unconditional ones."""
    classes = without_replacement(rng, np.array(list(data.members)), settings.classes_per_step)
    generated = settings.generated_per_class
    rows = np.concatenate([without_replacement(rng, data.members[c], generated) for c in classes])
    positives = np.stack([without_replacement(rng, data.members[c], settings.positives) for c in classes])
    unconditional = without_replacement(rng, np.arange(len(data.latents)), settings.unconditional)
    draws, atoms = torch.from_numpy(rng.random((2, len(classes)), dtype=np.float32))
    alpha = sample_alpha(draws, atoms, settings.alpha_power, settings.alpha_atom, settings.alpha_choices)
    levels = rng.integers(1, settings.levels + 1, len(rows))
    inputs = refiner_input(data, rows, levels, alpha.repeat_interleave(generated), settings, rng)
    return Batch(inputs, rows.reshape(len(classes), -1), alpha, positives, unconditional)
