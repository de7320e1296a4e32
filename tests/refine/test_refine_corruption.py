"""Corruption of token grids against dense references, closed forms and the properties that define each method."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ditscope.core.errors import InputError
from ditscope.refine.corruption import (
    EDGE_FLOOR,
    INTERPOLATIONS,
    coordinates,
    corrupt,
    draw_keys,
    edge_weights,
    graph_laplacian,
    grid_edges,
    key_counts,
    key_grid,
    key_mask,
    noise_amplitude,
)
from ditscope.refine.patches import patch_sides, patchify, token_grid, unpatchify
from ditscope.refine.settings import Refine

GRIDS = [(7,), (5, 6), (3, 4, 5)]
UNIFORM = replace(Refine(), sigma_feature=1e9, ridge=0.0)  # every edge weighs the same


def random_keys(rng, batch, grid, count):
    return np.stack([key_mask(rng.permutation(int(np.prod(grid))), count) for _ in range(batch)])


@pytest.mark.parametrize("schedule", ["linear", "doubling", "geometric"])
@pytest.mark.parametrize(("tokens", "levels", "minimum"), [(64, 4, 4), (64, 8, 1), (10, 6, 4), (4096, 5, 16)])
def test_key_counts_fall_strictly_to_the_minimum(schedule, tokens, levels, minimum):
    counts = key_counts(tokens, levels, minimum, schedule)
    assert len(counts) == levels
    assert counts[-1] == minimum
    assert all(a > b for a, b in pairwise(counts))
    assert counts[0] < tokens


def test_key_counts_follow_their_schedule():
    assert key_counts(64, 4, 4, "geometric") == [32, 16, 8, 4]  # (64 / 4)^(1/4) = 2
    assert key_counts(64, 3, 4, "doubling") == [16, 8, 4]
    assert key_counts(64, 3, 4, "linear") == [44, 24, 4]


def test_too_many_anchors_are_refused():
    with pytest.raises(InputError, match="min_anchors: 60 anchors and 8 levels do not fit into 64"):
        key_counts(64, 8, 60, "linear")


def test_key_sets_are_nested():
    order = np.random.default_rng(0).permutation(64)
    masks = [key_mask(order, count) for count in key_counts(64, 5, 4, "geometric")]
    for easy, hard in pairwise(masks):
        assert (hard <= easy).all()
        assert easy.sum() > hard.sum()


def test_keys_are_drawn_at_the_level_of_each_sample():
    counts = [32, 16, 8, 4]
    masks = draw_keys(np.random.default_rng(0), np.array([1, 4, 2]), 64, counts)
    assert masks.sum(1).tolist() == [32, 4, 16]


@pytest.mark.parametrize("space", [(8,), (4, 6), (2, 4, 6)])
def test_patches_come_apart_and_together_again(space):
    x = np.random.default_rng(0).standard_normal((2, 3, *space))
    tokens = patchify(x, 2)
    grid = token_grid(space, 2)
    assert grid == {1: (4,), 2: (2, 3), 3: (2, 2, 3)}[len(space)]
    assert tokens.shape == (2, np.prod(grid), 3 * 2 ** min(len(space), 2))  # a token never mixes frames
    np.testing.assert_array_equal(unpatchify(tokens, grid, 2), x)
    np.testing.assert_array_equal(patchify(torch.from_numpy(x), 2).numpy(), tokens)
    sides = patch_sides(len(space), 2)
    corner = x[(slice(None), slice(None), *(slice(0, side) for side in sides))]
    np.testing.assert_array_equal(tokens[:, 0], corner.reshape(2, -1))


@pytest.mark.parametrize("grid", GRIDS)
def test_laplacian_is_the_dense_one(grid):
    rng = np.random.default_rng(1)
    edges, points = grid_edges(grid), coordinates(grid)
    steps = np.abs(points[edges[:, 0]] - points[edges[:, 1]])
    assert (steps.sum(1) == 1).all()
    close = np.abs(points[:, None] - points[None]).sum(-1) == 1
    assert len(edges) == close.sum() // 2
    weights = rng.uniform(0.1, 1, (2, len(edges)))
    tokens = int(np.prod(grid))
    expected = np.zeros((2 * tokens, 2 * tokens))
    for sample in range(2):
        for w, (a, b) in zip(weights[sample], edges + sample * tokens, strict=True):
            expected[a, a] += w
            expected[b, b] += w
            expected[a, b] -= w
            expected[b, a] -= w
    laplacian = graph_laplacian(weights, grid).toarray()
    np.testing.assert_allclose(laplacian, expected, atol=1e-14)
    np.testing.assert_allclose(laplacian @ np.ones(2 * tokens), 0, atol=1e-12)


def test_missing_block_is_positive_definite_even_across_hard_edges():
    rng = np.random.default_rng(2)
    grid = (5, 5)
    tokens = 10 * rng.standard_normal((1, 25, 3))  # so different that every edge sits at the floor
    weights = edge_weights(tokens, grid, 0.2)
    assert weights.min() == EDGE_FLOOR
    missing = ~random_keys(rng, 1, grid, 3)[0]
    block = graph_laplacian(weights, grid).toarray()[np.ix_(missing, missing)]
    assert np.linalg.eigvalsh(block).min() > 0


@pytest.mark.parametrize("grid", GRIDS)
def test_laplacian_reproduces_a_linear_ramp(grid):
    points = coordinates(grid)
    ramp = (2.0 * points[:, :1] - 3.0)[None]
    keys = ((points[:, 0] == 0) | (points[:, 0] == grid[0] - 1))[None]
    filled = INTERPOLATIONS["laplacian"](np.where(keys[..., None], ramp, 0.0), keys, grid, UNIFORM)
    np.testing.assert_allclose(filled, ramp, atol=1e-10)


@pytest.mark.parametrize("method", ["linear", "idw", "laplacian"])
@pytest.mark.parametrize("grid", GRIDS)
def test_filled_values_stay_within_the_keys_and_keys_stay_as_they_are(method, grid):
    rng = np.random.default_rng(3)
    tokens = rng.standard_normal((4, int(np.prod(grid)), 2))
    keys = random_keys(rng, 4, grid, 4)
    filled = INTERPOLATIONS[method](tokens, keys, grid, Refine())
    for sample, whole, mask in zip(filled, tokens, keys, strict=True):
        np.testing.assert_array_equal(sample[mask], whole[mask])
        assert (sample.min(0) >= whole[mask].min(0) - 1e-9).all()
        assert (sample.max(0) <= whole[mask].max(0) + 1e-9).all()


@pytest.mark.parametrize("method", ["linear", "idw", "laplacian"])
def test_a_sample_is_filled_alike_alone_and_in_a_batch_and_without_its_missing_values(method):
    rng = np.random.default_rng(4)
    tokens = rng.standard_normal((3, 30, 2))
    keys = random_keys(rng, 3, (5, 6), 6)
    together = INTERPOLATIONS[method](tokens, keys, (5, 6), Refine())
    hidden = np.where(keys[..., None], tokens, 1e6)
    for i in range(3):
        alone = INTERPOLATIONS[method](hidden[i : i + 1], keys[i : i + 1], (5, 6), Refine())
        np.testing.assert_allclose(together[i], alone[0], atol=1e-9)


def test_inverse_distance_weighting_is_the_formula():
    rng = np.random.default_rng(5)
    grid = (4, 5)
    tokens = rng.standard_normal((1, 20, 3))
    keys = random_keys(rng, 1, grid, 5)
    filled = INTERPOLATIONS["idw"](tokens, keys, grid, Refine())[0]
    where = [(r, c) for r in range(4) for c in range(5)]
    for i, (r, c) in enumerate(where):
        if keys[0, i]:
            continue
        weights = {j: 1 / ((r - where[j][0]) ** 2 + (c - where[j][1]) ** 2) for j in np.flatnonzero(keys[0])}
        expected = sum(w * tokens[0, j] for j, w in weights.items()) / sum(weights.values())
        np.testing.assert_allclose(filled[i], expected, rtol=1e-12)


def test_linear_reproduces_a_plane_inside_the_hull_and_takes_the_nearest_key_outside():
    grid = (5, 5)
    points = coordinates(grid)
    plane = (points @ np.array([1.0, -2.0]) + 0.5)[None, :, None]
    corners = np.isin(points, [0, 4]).all(1)[None]
    np.testing.assert_allclose(INTERPOLATIONS["linear"](plane, corners, grid, Refine()), plane, atol=1e-10)
    line = ((points[:, 1] == 2) & (points[:, 0] < 3))[None]  # keys on one line span no triangle
    filled = INTERPOLATIONS["linear"](plane, line, grid, Refine()).reshape(5, 5)
    assert filled[0, 4] == plane.reshape(5, 5)[0, 2]
    path = np.array([0.0, 9, 9, 6, 9])[None, :, None]
    keys = np.array([[True, False, False, True, False]])
    np.testing.assert_allclose(INTERPOLATIONS["linear"](path, keys, (5,), Refine())[0, :, 0], [0, 2, 4, 6, 6])


def test_edge_awareness_keeps_a_step_steeper():
    grid = (6, 6)
    points = coordinates(grid)
    step = np.where(points[:, 1] < 3, 0.0, 1.0)[None, :, None]
    keys = np.isin(points[:, 1], [0, 5])[None] | (points[:, 0] == 0)[None]
    error = {
        sigma: np.abs(
            INTERPOLATIONS["laplacian"](step, keys, grid, replace(Refine(), sigma_feature=sigma)) - step
        ).mean()
        for sigma in (0.2, 1e9)
    }
    assert error[0.2] < 0.9 * error[1e9]


def test_noise_grows_away_from_keys():
    keys = np.array([[True, False, False, False, True, False]])
    np.testing.assert_allclose(noise_amplitude(keys, (6,), "dist"), [[0, 0.5, 1, 0.5, 0, 0.5]])
    np.testing.assert_allclose(noise_amplitude(keys, (6,), "gauss"), [[0.25, 1, 1, 1, 0.25, 1]])
    assert not noise_amplitude(keys, (6,), "none").any()


def test_noise_has_the_asked_size():
    grid, rng = (20, 20), np.random.default_rng(6)
    keys = random_keys(rng, 8, grid, 40)
    tokens = np.zeros((8, 400, 4))
    settings = replace(Refine(), interpolation="idw", noise="gauss", noise_scale=0.3)
    noisy = corrupt(tokens, keys, grid, settings, np.random.default_rng(7))
    assert noisy[~keys].std() == pytest.approx(0.3, rel=0.05)
    assert noisy[keys].std() == pytest.approx(0.075, rel=0.1)
    settings = replace(settings, noise="dist")
    assert not corrupt(tokens, keys, grid, settings, np.random.default_rng(7))[keys].any()


# Frames -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["idw", "laplacian"])
def test_one_frame_is_an_image(method):
    """(1, rows, columns) is the same corruption as (rows, columns), to the last bit."""
    rng = np.random.default_rng(8)
    tokens, keys = rng.standard_normal((2, 20, 3)), random_keys(rng, 2, (4, 5), 6)
    settings = replace(Refine(), interpolation=method, noise="dist")
    image = corrupt(tokens, keys, (4, 5), settings, np.random.default_rng(0))
    np.testing.assert_array_equal(corrupt(tokens, keys, (1, 4, 5), settings, np.random.default_rng(0)), image)


def test_missing_frames_are_interpolated_between_key_frames():
    """Against np.interp of every value along time; whole frames are kept or filled."""
    rng = np.random.default_rng(9)
    grid, settings = (6, 2, 3), replace(Refine(), keys="frames", interpolation="linear")
    clean = rng.standard_normal((2, 36, 4))
    kept = np.array([[1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 1, 0]], bool)
    filled = corrupt(clean, kept.repeat(6, axis=1), grid, settings, rng).reshape(2, 6, -1)
    frames = clean.reshape(2, 6, -1)
    for sample in range(2):
        where = np.flatnonzero(kept[sample])
        expected = [np.interp(np.arange(6), where, frames[sample, where, value]) for value in range(frames.shape[-1])]
        np.testing.assert_allclose(filled[sample], np.transpose(expected), atol=1e-12)


def test_noise_between_key_frames_is_the_same_over_a_frame_and_leaves_the_keys():
    grid, kept = (5, 3, 3), np.array([[1, 0, 0, 0, 1]], bool)
    settings = replace(Refine(), keys="frames", interpolation="idw", noise="dist", noise_scale=1.0)
    draws = [
        corrupt(np.zeros((1, 45, 8)), kept.repeat(9, axis=1), grid, settings, np.random.default_rng(seed))
        for seed in range(50)
    ]
    spread = np.stack(draws).reshape(50, 5, -1).std((0, 2))
    np.testing.assert_allclose(spread, [0, 0.5, 1, 0.5, 0], atol=0.05)


def test_frames_are_keys_of_videos_and_paths_and_not_of_images():
    assert key_grid((5, 3, 4), "frames") == (5,)
    assert key_grid((5, 3, 4), "patches") == (5, 3, 4)
    assert key_grid((7,), "frames") == (7,)
    with pytest.raises(InputError, match=r"refine\.keys: `frames`, but an image has none"):
        key_grid((4, 4), "frames")
    with pytest.raises(InputError, match="4 anchors and 2 levels do not fit into 5 frames"):
        key_counts(5, 2, 4, "linear", "frames")
