"""The refiner's network: any grid, what it attends to, what it is told, its file."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch

from ditscope.core.errors import InputError
from ditscope.refine.apply import Conditions, apply, as_input, coarse_to_fine
from ditscope.refine.corruption import KEY, REPLACED, corrupt
from ditscope.refine.keys import draw_orders, key_counts, key_masks
from ditscope.refine.patches import patch_sides
from ditscope.refine.refiner import Attention, Refiner, RefinerConfig, RefinerInput, rotary_turns, rotate
from ditscope.refine.refiner_file import load_weights
from ditscope.refine.settings import Refine

GRIDS = ((6,), (4, 4), (3, 4, 4))
CHANNELS, WORDS, TEXT = 3, 5, 7


def config(axes: int, **other) -> RefinerConfig:
    return RefinerConfig(CHANNELS, axes, 2, 24, 2, 2, classes=4, text_width=TEXT, **other)


def lively(axes: int) -> Refiner:
    """A refiner whose gates and head are open, so that everything it is told matters."""
    torch.manual_seed(0)
    network = Refiner(config(axes))
    for name, p in network.named_parameters():
        if p.abs().max() == 0 or name.startswith(("modulation", "head")):
            torch.nn.init.normal_(p, std=0.2)
        if name.endswith("table"):
            torch.nn.init.normal_(p, std=0.5)
    return network.eval()


def told(grid: tuple[int, ...], batch: int = 2) -> RefinerInput:
    """Made-up input over a grid."""
    made = torch.Generator().manual_seed(1)
    tokens, size = prod(grid), CHANNELS * prod(patch_sides(len(grid), 2))
    keys = torch.rand(batch, tokens, generator=made) < 0.3
    keys[:, 0] = True
    return RefinerInput(
        tokens=torch.randn(batch, tokens, size, generator=made),
        keys=keys,
        confidence=KEY * keys.float(),
        sureness=torch.rand(batch, tokens, generator=made),
        text=torch.randn(batch, WORDS, TEXT, generator=made),
        words=torch.arange(WORDS)[None].expand(batch, -1) < 3,
        classes=torch.zeros(batch, dtype=torch.int64),
        alpha=torch.ones(batch),
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_an_untrained_refiner_returns_its_input_on_any_grid(grid):
    network, inputs = Refiner(config(len(grid))), told(grid)
    torch.testing.assert_close(network(inputs, grid), inputs.tokens, rtol=0, atol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_token_and_everything_it_is_told_matters(grid):
    network, inputs = lively(len(grid)), told(grid)
    refined = network(inputs, grid)
    last = inputs.tokens.clone()
    last[:, -1] += 1
    changes = {
        "tokens": last,  # the first token sees the last one, in a film through space and time
        "keys": ~inputs.keys | (torch.arange(prod(grid)) == 0),
        "confidence": inputs.confidence + 0.5,
        "sureness": inputs.sureness + 0.5,
        "text": inputs.text + 1,
        "words": ~inputs.words,
        "classes": inputs.classes + 4,  # the last one stands for none
        "alpha": inputs.alpha + 1,
    }
    for name, value in changes.items():
        changed = network(replace(inputs, **{name: value}), grid)
        assert (changed[:, 0] - refined[:, 0]).abs().max() > 1e-4, name


def test_words_that_are_not_there_and_values_of_missing_keys_are_not_seen():
    grid = (3, 4, 4)
    network, inputs = lively(3), told(grid)
    padded = torch.where(inputs.words[..., None], inputs.text, 1e3)
    torch.testing.assert_close(network(replace(inputs, text=padded), grid), network(inputs, grid))
    none = replace(inputs, words=torch.zeros_like(inputs.words))
    assert network(none, grid).isfinite().all()


def test_rotary_attention_sees_only_how_far_tokens_are_apart():
    """Scores of the same content do not change where all positions move; and equal a rotation by complex numbers."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16)
    turns = rotary_turns((8, 8), 16)
    at = lambda row, column: turns[8 * row + column][None]  # noqa: E731

    def score(a, b):
        return (rotate(q, at(*a)) * rotate(k, at(*b))).sum()

    torch.testing.assert_close(score((0, 1), (2, 5)), score((3, 2), (5, 6)))
    assert (score((0, 1), (2, 5)) - score((0, 1), (2, 4))).abs() > 1e-3
    angle = torch.atan2(at(3, 5)[..., 1], at(3, 5)[..., 0])
    turned = torch.complex(*q.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(rotate(q, at(3, 5)), torch.cat([turned.real, turned.imag], -1))


def test_attention_is_the_plain_formula():
    torch.manual_seed(0)
    attention, x, context = Attention(8, 2, 8), torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    seen = torch.tensor([[True, True, False, True]])
    q = attention.q(x).reshape(3, 2, 4)
    k, v = (part.reshape(4, 2, 4) for part in attention.kv(context).chunk(2, -1))
    norm = lambda y: y / (y.square().mean(-1, keepdim=True) + torch.finfo(y.dtype).eps).sqrt()  # noqa: E731
    scores = torch.einsum("nhd,mhd->hnm", norm(q), norm(k)) / 2
    weights = scores.masked_fill(~seen[0], -torch.inf).softmax(-1)
    expected = attention.out(torch.einsum("hnm,mhd->nhd", weights, v).reshape(1, 3, 8))
    torch.testing.assert_close(attention(x, context, seen=seen), expected)


def test_a_grid_that_was_never_trained_on_is_refined_too():
    """Nothing of a network belongs to one grid: a constant sample gives the same at any size, far from its borders."""
    network = lively(2)
    for grid in ((2, 2), (9, 5)):
        assert network(told(grid), grid).shape == told(grid).tokens.shape


def test_trusted_keys_stay_to_the_bit_and_replaced_ones_do_not():
    grid = (4, 4)
    network, inputs = lively(2), told(grid)
    replaced = torch.zeros_like(inputs.keys)
    replaced[:, 0] = True
    inputs = replace(inputs, confidence=torch.where(replaced, REPLACED, inputs.confidence))
    refined, trusted = apply(network, inputs, grid), inputs.keys & ~replaced
    assert torch.equal(refined[trusted], inputs.tokens[trusted])
    assert not torch.isclose(refined[~trusted], inputs.tokens[~trusted]).all(-1).any()
    free = apply(network, inputs, grid, clamp=False)
    assert not torch.isclose(free[inputs.keys], inputs.tokens[inputs.keys]).all(-1).any()
    torch.testing.assert_close(free[~inputs.keys], refined[~inputs.keys])


def test_coarse_to_fine_looks_at_nothing_but_the_keys_and_one_level_is_one_step():
    grid, settings = (4, 4), replace(Refine(), interpolation="idw", levels=3, min_keys=3)
    network, rng = lively(2), np.random.default_rng(0)
    clean = rng.standard_normal((2, 16, 12))
    orders = draw_orders(rng, 2, 16)
    counts = key_counts(16, 3, 3, "geometric")
    conditions = Conditions(*(getattr(told(grid), name) for name in ("text", "words", "classes", "alpha")))
    known = key_masks(orders, np.full(2, 3))
    other = np.where(known[..., None], clean, 7.0)

    def refined(values, levels):
        arguments = orders, 3, levels, grid, settings, conditions, np.random.default_rng(1)
        return coarse_to_fine(network, values, *arguments)

    torch.testing.assert_close(refined(clean, counts), refined(other, counts))
    corrupted = corrupt(clean, known, grid, settings, np.random.default_rng(1))
    once = apply(network, as_input(corrupted, known, conditions), grid)
    torch.testing.assert_close(refined(clean, [3]), once)
    assert not torch.allclose(refined(clean, counts), once)
    assert torch.equal(
        refined(clean, counts)[torch.from_numpy(known)].double(), torch.from_numpy(clean)[known].float().double()
    )


def test_weights_of_another_shape_are_refused_in_one_line(tmp_path):
    network = Refiner(config(2))
    with pytest.raises(
        InputError, match=r"x.safetensors: `class_embed.weight` has the shape .5, 24., this refiner .9, 24."
    ):
        load_weights(Refiner(replace(network.config, classes=8)), network.state_dict(), tmp_path / "x.safetensors")
