"""Refine samples of which keys are given: what evaluation on held-out samples and use of a refiner share."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ditscope.models.loading import default_device
from ditscope.refine.apply import Conditions, apply, as_input, coarse_to_fine
from ditscope.refine.codebook import Codebook, assign, text_vectors
from ditscope.refine.corruption import corrupt
from ditscope.refine.grids import Grid
from ditscope.refine.keys import end_nodes, key_counts, key_grid, key_masks
from ditscope.refine.refiner_file import Trained
from ditscope.refine.settings import Refine

BATCH = 64  # samples that the network takes at once


def pseudo_classes(
    book: Codebook, prompts: Sequence[str], text: np.ndarray, words: np.ndarray, clean: np.ndarray, keys: np.ndarray
) -> np.ndarray:
    """Pseudo-class (samples,) by text and keys: nothing else of `clean` (samples, tokens, size) is looked at.

    `keys` (samples, nodes) says which are known; their mean stands in for that of the codebook's keys.
    """
    known = keys.repeat(clean.shape[1] // keys.shape[1], axis=1)[..., None]
    means = np.where(known, clean, 0).sum(1, dtype=np.float64) / known.sum(1)
    conditions = np.concatenate([text_vectors(book, list(prompts), text, words), means], 1).astype(np.float16)
    return assign(book, conditions)[0].astype(np.int64)


def conditions_of(
    trained: Trained,
    prompts: Sequence[str],
    text: np.ndarray,
    words: np.ndarray,
    clean: np.ndarray,
    keys: np.ndarray,
    told: bool = True,
) -> Conditions:
    """What a refiner is told of samples beside their keys; with `told` false nothing, as in training by dropout.

    A refiner that was never told a pseudo-class, or a text, in training is told none here. Shapes are those of
    `pseudo_classes`.
    """
    settings, none = trained.settings, trained.network.config.classes
    codes = np.full(len(keys), none, np.int64)
    if told and settings.class_dropout < 1:
        found = pseudo_classes(trained.codebook, prompts, text, words, clean, keys)
        some = np.array([bool(prompt) for prompt in prompts]) | words.any(1)
        codes = np.where(some, found, none)
    return conditions(text, words & (told and settings.text_dropout < 1), codes)


def conditions(text: np.ndarray, words: np.ndarray, codes: np.ndarray) -> Conditions:
    """The same of given pseudo-classes (samples,), without guidance: text (samples, words, width), which words."""
    device = default_device()
    alpha = np.ones(len(codes), np.float32)
    return Conditions(
        *(torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (text, words, codes, alpha))
    )


def interpolate(clean: np.ndarray, keys: np.ndarray, grid: Grid, settings: Refine) -> np.ndarray:
    """Tokens like `clean` (samples, tokens, size) with all but `keys` (samples, nodes) filled in, without noise."""
    quiet = replace(settings, noise="none", key_replacement=0.0)
    filled = corrupt(clean, keys, grid, quiet, np.random.default_rng(0)).tokens
    return filled.astype(np.float32)


def refined(
    trained: Trained, clean: np.ndarray, orders: np.ndarray, given: int, grid: Grid, told: Conditions, seed: int = 0
) -> np.ndarray:
    """Refined tokens like `clean` (samples, tokens, size), at once or coarse to fine as its settings say.

    Of the permutations `orders` (samples, nodes) the first `given` nodes are known; of the others nothing is looked
    at. Noise, where the settings ask for some, is drawn from `seed`.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, len(clean), BATCH):
        rows = slice(start, start + BATCH)
        part = Conditions(**{name: value[rows] for name, value in vars(told).items()})
        parts.append(step(trained, clean[rows], orders[rows], given, grid, part, rng))
    return np.concatenate(parts)


@torch.no_grad()
def step(
    trained: Trained,
    clean: np.ndarray,
    orders: np.ndarray,
    given: int,
    grid: Grid,
    told: Conditions,
    rng: np.random.Generator,
) -> np.ndarray:
    """`refined` of one batch."""
    network, settings = trained.network.to(told.text.device), trained.settings
    if settings.refinement == "coarse-to-fine":
        counts = level_counts(grid, settings)
        tokens = coarse_to_fine(network, clean, orders, given, counts, grid, settings, told, rng)
        return np.asarray(tokens.cpu())
    keys = key_masks(orders, np.full(len(orders), given))
    protected = end_nodes(key_grid(grid, settings.keys)) if settings.endpoints else None
    given_as_they_are = replace(settings, key_replacement=0.0, key_noise=0.0)
    corrupted = corrupt(clean, keys, grid, given_as_they_are, rng, protected)
    return np.asarray(apply(network, as_input(corrupted, keys, told), grid, settings.clamp_keys).cpu())


def level_counts(grid: Grid, settings: Refine) -> list[int]:
    """Keys at levels 1, 2, ... of a grid; only those of the settings that fit into a smaller one."""
    nodes = int(np.prod(key_grid(grid, settings.keys)))
    levels = min(settings.levels, nodes - settings.min_keys)
    return key_counts(nodes, levels, settings.min_keys, settings.schedule, settings.keys) if levels > 0 else []
