"""Means of paired differences against SciPy, brute force and closed forms; their coverage and their power."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from ditscope.core.intervals import unit_means
from ditscope.core.paired import (
    Centre,
    bootstrap_roots,
    centre,
    decision_power,
    detectable,
    resample_counts,
    tail_of_chance,
    units_to_decide,
    units_to_see,
    unseen,
    worst_mean,
)


def test_without_resamples_it_is_student_s_t():
    values = np.random.default_rng(0).normal(0.4, 1, 12)
    plain = Centre(float(values.mean()), float(values.std(ddof=1) / np.sqrt(12)), 12)
    theirs = ttest_1samp(values, 0.1)
    assert plain.p(0.1) == pytest.approx(theirs.pvalue, rel=1e-12)
    assert plain.interval() == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-12)


def test_roots_equal_those_of_a_loop_over_resamples():
    values = np.random.default_rng(1).exponential(size=9)
    loop = []
    for counts in resample_counts(9):
        drawn = np.repeat(values, counts.astype(int))
        if np.ptp(drawn):
            loop.append((drawn.mean() - values.mean()) / (drawn.std(ddof=1) / 3))
    assert bootstrap_roots(values) == pytest.approx(np.sort(loop), rel=1e-9)


def test_interval_holds_what_the_test_does_not_refuse():
    """Both are of one distribution, up to a resample's share."""
    middle = centre(np.random.default_rng(2).exponential(size=20))
    for end in middle.interval(0.95):
        assert middle.p(end) == pytest.approx(0.05, abs=0.003)
    assert middle.p(middle.mean) == 1.0
    assert middle.interval(0.99)[0] < middle.interval(0.9)[0] < middle.mean < middle.interval(0.9)[1]


def test_equal_differences_have_no_spread():
    none = centre(np.zeros(9))
    assert (none.interval(), none.p(0.0)) == ((0.0, 0.0), 1.0)
    assert centre(np.full(9, 0.5)).p(0.0) == 0.0


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize("draw", [
    lambda rng, size: rng.standard_normal(size),
    lambda rng, size: rng.exponential(size=size) - 1,
    lambda rng, size: rng.standard_t(3, size),
    lambda rng, size: rng.standard_normal(size) - np.where(rng.random(size) < 0.1, 4.0, 0.0) + 0.4,
], ids=["normal", "skewed", "heavy", "failures"])  # fmt: skip
def test_coverage_with_seeds_that_are_alike_within_prompts(draw, n):
    """93 to 97 % and five standard errors of 400 draws less or more; so false alarms are below 5 % and as much."""
    rng, seeds, times = np.random.default_rng(n), 3, 400
    covered = refused = 0
    units = np.repeat(np.arange(n), seeds).tolist()
    for _ in range(times):
        values = np.repeat(draw(rng, n), seeds) + rng.standard_normal(n * seeds)
        middle = centre(unit_means(values, units))
        low, high = middle.interval()
        covered += low <= 0 <= high
        refused += middle.p() <= 0.05
    error = 3.5 * np.sqrt(0.05 * 0.95 / times)
    assert 0.93 - error < covered / times <= 0.97 + error
    assert refused / times < 0.06 + error


def test_unseen_bounds_are_clopper_and_pearson_s():
    low, high = unseen(0.0, 0, 0, 59, level=0.9)
    assert high == pytest.approx(1 - 0.05 ** (1 / 59)) and low == -high
    low, high = unseen(-0.01, 3, 1, 40)
    down, up = (binomtest(k, 40).proportion_ci(0.95, "exact").high for k in (3, 1))
    assert (low, high) == (pytest.approx(-0.01 - (down - 3 / 40)), pytest.approx(-0.01 + (up - 1 / 40)))
    assert units_to_see(0.0, 0.0, 0.0, 0.05) == 72
    assert unseen(-1.0, 4, 0, 4)[0] == -1.0


def test_tail_is_the_mean_of_the_worst_and_chance_gives_as_bad_a_one():
    gains = np.arange(40.0)
    assert worst_mean(gains) == 0.5 and worst_mean(gains[:5]) == 0.0
    rng = np.random.default_rng(3)
    p = np.array([tail_of_chance(rng.standard_normal(24), 199)[1] for _ in range(300)])
    assert abs((p <= 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 300)
    lost = np.append(-np.ones(40), -9.0)  # flipped at random, half of these are gains
    assert tail_of_chance(lost) == (pytest.approx(-1 - 8 / 6, abs=1.4), pytest.approx(0.5, abs=0.06))


@pytest.mark.parametrize(("mean", "margin", "null"), [(0.0, 0.5, 0.0), (0.4, 0.1, 0.0), (-0.8, 0.3, -0.3)])
def test_planned_units_decide_as_often_as_planned(mean, margin, null):
    """At the planned size 80 % of normal samples are decided, in simulation."""
    n = units_to_decide(mean, 1.0, margin, null)
    assert decision_power(mean, 1.0, n, margin, null) >= 0.8 > decision_power(mean, 1.0, n - 1, margin, null)
    rng, decided, times = np.random.default_rng(4), 0, 300
    for _ in range(times):
        values = rng.normal(mean, 1, n)
        middle = Centre(float(values.mean()), float(values.std(ddof=1) / np.sqrt(n)), n)
        low, high = middle.interval()
        decided += (-margin < low and high < margin) or middle.p(null) <= 0.05
    assert abs(decided / times - 0.8) < 4 * np.sqrt(0.16 / times)


def test_what_no_number_of_units_decides():
    assert units_to_decide(0.5, 1.0, 0.5, null=0.5) is None
    assert units_to_decide(0.0, 0.0, 0.5) == 8
    assert detectable(1.0, 64) == pytest.approx(2.0 / 8 + 0.847 / 8, abs=0.01)
