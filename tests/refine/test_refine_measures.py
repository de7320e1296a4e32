"""Measures of refined samples against plain loops and closed forms, with their nulls."""

import numpy as np
import pytest
from scipy.stats import t

from ditscope.core.intervals import jackknife_interval
from ditscope.core.metrics import kid
from ditscope.refine import measures
from ditscope.refine.interpolations.flow import optical_flow
from ditscope.shapes.moving import all_moves, describe_move, render_move
from ditscope.shapes.world import all_scenes, caption, render

RNG = np.random.default_rng(0)


def test_errors_count_the_masked_tokens_of_each_sample_alone():
    tokens, clean = RNG.standard_normal((2, 3, 5, 4))
    mask = RNG.random((3, 5)) < 0.5
    mask[:, 0] = True
    wanted = [np.mean([np.mean((tokens[i, j] - clean[i, j]) ** 2) for j in np.flatnonzero(mask[i])]) for i in range(3)]
    np.testing.assert_allclose(measures.masked_error(tokens, clean, mask), wanted)


def kernel_loop(truth, features, units):
    """The statistic of Gretton et al. 2012, lemma 6, pair by pair."""

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    pairs = [(i, j) for i in range(len(units)) for j in range(len(units)) if units[i] != units[j]]
    terms = [
        k(truth[i], truth[j]) + k(features[i], features[j]) - k(truth[i], features[j]) - k(truth[j], features[i])
        for i, j in pairs
    ]
    return np.mean(terms)


def test_kernel_distance_is_that_of_a_loop_with_and_without_each_unit():
    units = np.array([0, 0, 1, 2, 2, 2, 3])
    truth, features = RNG.standard_normal((2, 7, 5))
    whole, without = measures.kernel_distances(truth, features, units)
    assert whole == pytest.approx(kernel_loop(truth, features, units))
    for unit in range(4):
        kept = units != unit
        assert without[unit] == pytest.approx(kernel_loop(truth[kept], features[kept], units[kept]))


def test_kernel_distance_of_unpaired_sets_is_nearly_that_of_torch_fidelity():
    """That one counts the pairs (i, i) between the sets as well, of which unpaired sets have 1 in n."""
    truth, features = RNG.standard_normal((200, 8)), RNG.standard_normal((200, 8)) + 0.5
    assert measures.kernel_distances(truth, features, np.arange(200))[0] == pytest.approx(
        kid(truth, features), rel=0.02
    )


def test_kernel_distance_is_unbiased_for_samples_near_their_own_truth_and_its_interval_covers():
    """Refined samples resemble their own true ones; sets of one distribution still have distance 0."""
    rng, values, covered = np.random.default_rng(2), [], []
    for _ in range(300):
        truth = rng.standard_normal((40, 6))
        features = 0.6 * truth + 0.8 * rng.standard_normal((40, 6))
        whole, without = measures.kernel_distances(truth, features, np.arange(40))
        low, high = jackknife_interval(whole, without)
        values.append(whole)
        covered.append(low <= 0 <= high)
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert np.mean(covered) >= 0.93
    with_pairs = [kid(*np.repeat(rng.standard_normal((1, 40, 6)), 2, 0)) for _ in range(20)]
    assert np.mean(with_pairs) < -0.1  # what counting a sample's own truth does


def test_flicker_is_of_changes_and_warp_error_of_motion():
    film = render_move(all_moves()[100], 5, np.random.default_rng(0))
    flows = [measures.true_flow(film, optical_flow)]
    brighter = np.clip(film.astype(int) - 20, 0, 255).astype(np.uint8)
    inside = film.min() >= 20
    assert measures.flicker(film[None], film[None])[0] == 0
    assert not inside or measures.flicker(brighter[None], film[None])[0] == 0
    blinking = film.copy()
    blinking[1::2] = np.clip(blinking[1::2].astype(int) - 40, 0, 255)
    assert measures.flicker(blinking[None], film[None])[0] > 10
    own, still = (measures.warp_error(x[None], flows)[0] for x in (film, film[[0, 0, 0, 0, 0]]))
    assert own < 3 < still
    assert own < measures.warp_error(blinking[None], flows)[0]


def test_a_film_that_moves_by_whole_pixels_has_no_warp_error_along_its_own_motion():
    first = RNG.integers(0, 255, (12, 12, 3), dtype=np.uint8)
    film = np.stack([np.roll(first, t, 1) for t in range(3)])

    def shift(a, b):
        """From a frame to the one before it: one column to the left."""
        return np.stack([np.zeros((12, 12)), np.full((12, 12), -1.0)])

    flows = [measures.true_flow(film, shift)]
    assert flows[0][0][1][:, 1:].all() and not flows[0][0][1].all()  # what comes in at the border is left out
    assert measures.warp_error(film[None], flows)[0] == 0
    assert measures.warp_error(film[None, ::-1], flows)[0] > 10


def test_labels_of_the_shapes_world_say_what_the_oracle_must_read():
    scene, move = all_scenes()[7], all_moves()[9]
    assert measures.attributes_of(caption(scene), film=False) == scene.attributes()
    wanted = {name: value for name, value in move.attributes().items() if name != "motion"}
    assert measures.attributes_of(describe_move(move), film=True) == wanted
    assert measures.attributes_of("a photo of a red car", film=False) == {}
    assert measures.attributes_of("", film=True) == {}
    picture = np.asarray(render(scene, np.random.default_rng(0)))
    other = np.full_like(picture, 128)
    shares = measures.oracle_share(np.stack([picture, other]), [scene.attributes()] * 2)
    assert shares.tolist() == [1, 0]
    film = render_move(move, 4, np.random.default_rng(0))
    film[1] = 128
    assert measures.oracle_share(film[None], [wanted]).tolist() == [0.5]  # 2 of the 4 frames are read


@pytest.mark.parametrize(
    ("frames", "read"), [(1, [0]), (2, [0]), (3, [1]), (4, [1, 2]), (5, [1, 2, 3]), (9, [2, 4, 6])]
)
def test_frames_that_the_oracle_reads(frames, read):
    assert measures.inner(frames).tolist() == read


def test_gains_are_paired_means_over_units_with_students_interval():
    units = np.repeat(np.arange(10), 2)
    plain, values = RNG.random((2, 20))
    row = measures.mean_row(values, plain, units, "missing_error")
    gains = (plain - values).reshape(10, 2).mean(1)
    half = t.ppf(0.975, 9) * gains.std(ddof=1) / np.sqrt(10)
    assert row["gain"] == pytest.approx(gains.mean())
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((gains.mean() - half, gains.mean() + half))
    assert measures.mean_row(values, plain, units, "psnr_db")["gain"] == pytest.approx(-gains.mean())
    assert measures.mean_row(plain, None, units, "psnr_db")["gain"] is None
    few = measures.mean_row(values[:4], plain[:4], np.arange(4), "missing_error")
    assert few["low"] is None and few["gain_high"] is None and few["gain"] is not None


def test_shares_have_intervals_between_0_and_1():
    row = measures.mean_row(np.repeat([0.0, 1.0], [11, 1]), None, np.arange(12), "oracle_all")
    assert 0 <= row["low"] < row["value"] < row["high"] <= 1
    none = measures.mean_row(np.zeros(12), None, np.arange(12), "oracle_all")
    assert none["low"] == 0 and none["high"] > 0.2  # none of 12 may still be a fifth of all
