"""Use a refiner: in one step, or from coarse to fine over nested keys. Training, evaluation and use all come here."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ditscope.refine.corruption import KEY, MISSING, PROTECTED, REPLACED, Corrupted, corrupt
from ditscope.refine.grids import Grid
from ditscope.refine.keys import end_nodes, key_grid, key_masks
from ditscope.refine.refiner import RefinerInput
from ditscope.refine.settings import Refine


def apply(network: nn.Module, inputs: RefinerInput, grid: Grid, clamp: bool = True) -> Tensor:
    """Refined tokens (batch, tokens, size) in one step; with `clamp` keys that are trusted stay as they are."""
    refined = network(inputs, grid)
    if not clamp:
        return refined
    return torch.where((inputs.keys & (inputs.confidence >= KEY))[..., None], inputs.tokens, refined)


@dataclass(frozen=True)
class Conditions:
    """What a refiner is told of a batch beside its tokens; see RefinerInput."""

    text: Tensor
    words: Tensor
    classes: Tensor
    alpha: Tensor


def as_input(corrupted: Corrupted, keys: np.ndarray, conditions: Conditions) -> RefinerInput:
    """What a refiner is given of corrupted tokens and their keys (batch, nodes), on the conditions' device."""
    each, device = corrupted.tokens.shape[1] // keys.shape[1], conditions.text.device

    def tokenwise(mask: np.ndarray) -> Tensor:
        return torch.from_numpy(mask.repeat(each, axis=1)).to(device)

    return RefinerInput(
        tokens=torch.from_numpy(corrupted.tokens.astype(np.float32)).to(device),
        keys=tokenwise(keys),
        confidence=tokenwise(corrupted.confidence.astype(np.float32)),
        sureness=tokenwise(corrupted.interpolation.astype(np.float32)),
        **vars(conditions),
    )


@torch.no_grad()
def coarse_to_fine(
    network: nn.Module,
    clean: np.ndarray,
    orders: np.ndarray,
    given: int,
    counts: list[int],
    grid: Grid,
    settings: Refine,
    conditions: Conditions,
    rng: np.random.Generator,
) -> Tensor:
    """Refine from few keys to many: what one step gives at the next keys is taken as proposals that it starts from.

    Of the permutations `orders` (batch, nodes) the first `given` nodes are known, from `clean` (batch, tokens, size);
    of the others nothing is looked at. `counts` are the numbers of keys of all levels, falling. Returns tokens like
    `clean`.
    """
    nodes, values = orders.shape[1], clean.astype(np.float64).copy()
    known = key_masks(orders, np.full(len(orders), given))
    ends = end_nodes(key_grid(grid, settings.keys)) if settings.endpoints else np.zeros(nodes, bool)
    each = clean.shape[1] // nodes
    refined = None
    for count in [given, *sorted(n for n in counts if n > given)]:
        keys = key_masks(orders, np.full(len(orders), count))
        corrupted = corrupt(values, keys, grid, settings, rng, known)
        confidence = np.select([known & ends, known, keys], [PROTECTED, KEY, REPLACED], MISSING)
        inputs = as_input(Corrupted(corrupted.tokens, confidence, corrupted.interpolation), keys, conditions)
        refined = apply(network, inputs, grid, settings.clamp_keys)
        values = np.where(known.repeat(each, axis=1)[..., None], clean, refined.cpu().numpy())
    if refined is None:
        raise ValueError("no keys")
    return refined
