"""Quantizers against brute force and known clusters: no code without samples, no chunk that changes a number."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from ditscope.refine import quantizers
from ditscope.refine.quantizers import (
    QUANTIZERS,
    assigned,
    nearest_code,
    occupancy,
    occupied,
    poor,
    quantize,
    quantized,
)


def clusters(codes=6, each=80, size=5, spread=0.1) -> tuple[np.ndarray, np.ndarray]:
    """Points around `codes` centres, sorted by them, as shards of a class each would be."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((codes, size))
    labels = np.repeat(np.arange(codes), each)
    return (centres[labels] + spread * rng.standard_normal((len(labels), size))).astype(np.float32), labels


def test_the_nearest_code_is_that_of_all_distances_in_any_chunk(monkeypatch):
    rng = np.random.default_rng(1)
    points, centroids = rng.standard_normal((50, 7)), rng.standard_normal((9, 7))
    distances = np.linalg.norm(points[:, None] - centroids, axis=-1)
    for size in (1, 7, 4096):
        monkeypatch.setattr(quantizers, "chunks", lambda rows, n=size: iter(np.split(rows, range(n, len(rows), n))))
        codes, near = nearest_code(centroids, points)
        np.testing.assert_array_equal(codes, distances.argmin(1))
        np.testing.assert_allclose(near, distances.min(1), rtol=1e-12)


@pytest.mark.parametrize("kind", list(QUANTIZERS))
def test_well_separated_clusters_are_the_codes(kind):
    points, labels = clusters()
    rows = np.arange(len(points))
    arrays = QUANTIZERS[kind](points.__getitem__, rows, 6, 0, 150)
    codes, _ = quantized(arrays, points.__getitem__, rows)
    assert adjusted_rand_score(labels, codes) > (0.99 if kind == "kmeans" else 0.8)
    again = QUANTIZERS[kind](points.__getitem__, rows, 6, 0, 150)
    assert all((again[name] == value).all() for name, value in arrays.items())


@pytest.mark.parametrize("kind", list(QUANTIZERS))
def test_no_code_is_left_without_samples(kind):
    """More codes than clusters; half of the samples are far from the others."""
    points, _ = clusters(codes=3, each=40)
    points[60:] += 50
    rows = np.arange(len(points))
    arrays = QUANTIZERS[kind](points.__getitem__, rows, 24, 0, 20)
    codes, _ = quantized(arrays, points.__getitem__, rows)
    assert len(np.unique(codes)) == 24


def test_dead_codes_start_again_at_the_farthest_samples():
    points = np.array([[0.0], [0.1], [10.0], [30.0]], np.float32)
    centroids = np.array([[0.0], [-100.0], [-200.0]], np.float32)
    moved = occupied(centroids, points.__getitem__, np.arange(4))
    assert sorted(moved[:, 0].tolist()) == [0.0, 10.0, 30.0]


def test_fewer_distinct_samples_than_codes_end_with_empty_codes():
    points = np.repeat(np.array([[0.0], [1.0]], np.float32), 10, 0)
    arrays = QUANTIZERS["kmeans"](points.__getitem__, np.arange(20), 5, 0, 0)
    codes, distances = assigned(arrays["centroids"], points.__getitem__, np.arange(20))
    assert len(np.unique(codes)) == 2
    assert distances.max() == pytest.approx(0, abs=1e-6)


def test_a_codebook_too_large_for_its_samples_falls_back_and_says_why():
    points, _ = clusters(codes=8, each=10)
    rows = np.arange(len(points))
    arrays, tried = quantize(points.__getitem__, rows, "kmeans", 64, 8, 0, 0)
    assert [(t["codes"], t["kept"]) for t in tried] == [(64, False), (8, True)]
    assert "of the codes have one sample or none" in tried[0]["why"]
    assert len(arrays["centroids"]) == 8
    for fallback in (0, 64):  # none, or one that is not smaller
        arrays, tried = quantize(points.__getitem__, rows, "kmeans", 64, fallback, 0, 0)
        assert [(t["codes"], t["kept"], t["why"]) for t in tried] == [(64, True, "")]
    arrays, tried = quantize(points.__getitem__, rows, "kmeans", 8, 4, 0, 0)
    assert len(arrays["centroids"]) == 8


def test_the_rule_of_the_fallback():
    even = occupancy(np.repeat(np.arange(8), 5), 8)
    assert poor(even) == ""
    assert "one code has 0.75 of the samples" in poor(occupancy(np.repeat([0, 1, 2], [30, 5, 5]), 3))
    assert "0.50 of the codes" in poor(occupancy(np.repeat(np.arange(4), 5), 8))
