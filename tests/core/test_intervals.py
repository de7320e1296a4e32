"""Intervals of means: coverage on drawn data of known mean, units in place of rows, none of a few."""

import numpy as np
import pytest
import scipy.stats

from ditscope.core.intervals import LEAST_UNITS, jackknife_interval, mean_interval, share_interval, unit_means

SETS = 4000


def coverage(draws, mean, **options):
    """Share of data sets (rows of `draws`) whose 95 % interval holds `mean`."""
    intervals = [mean_interval(row, **options) for row in draws]
    return np.mean([f.low <= mean <= f.high for f in intervals])


@pytest.mark.parametrize("n", [8, 16, 64])
def test_interval_covers_at_its_nominal_rate(n):
    draws = np.random.default_rng(n).normal(3, 2, (SETS, n))
    error = np.sqrt(0.95 * 0.05 / SETS)
    assert coverage(draws, 3) == pytest.approx(0.95, abs=3 * error)


@pytest.mark.parametrize("n, plain, positive", [(8, 0.84, 0.91), (16, 0.895, 0.93), (64, 0.932, 0.943)])
def test_interval_of_squares_covers_as_the_docs_say(n, plain, positive):
    draws = np.random.default_rng(n).chisquare(1, (SETS, n))
    assert coverage(draws, 1) == pytest.approx(plain, abs=0.015)
    assert coverage(draws, 1, positive=True) == pytest.approx(positive, abs=0.015)


@pytest.mark.parametrize("n", [8, 16, 64])
def test_values_of_one_unit_do_not_count_as_independent(n):
    """Units of 6 rows that share most of their deviation: as rows they would cover far too seldom."""
    rng = np.random.default_rng(n)
    rows = (rng.normal(0, 2, (SETS, n, 1)) + rng.normal(0, 1, (SETS, n, 6))).reshape(SETS, -1)
    units = np.repeat(np.arange(n), 6).tolist()
    error = np.sqrt(0.95 * 0.05 / SETS)
    assert coverage(rows, 0, units=units) == pytest.approx(0.95, abs=3 * error)
    assert coverage(rows, 0) < 0.7


def test_interval_is_that_of_scipy():
    values = np.random.default_rng(1).normal(5, 2, 20)
    interval = mean_interval(values)
    reference = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high))
    assert (interval.mean, interval.units) == (pytest.approx(values.mean()), 20)
    assert interval.std / np.sqrt(20) == pytest.approx(scipy.stats.sem(values))


def test_few_units_are_a_point_without_interval():
    values = np.arange(float(LEAST_UNITS))
    assert mean_interval(values).low is not None
    assert mean_interval(values[:-1])[2:] == (None, None, LEAST_UNITS - 1)
    assert mean_interval(values, units=[0, 0, *range(6)])[2:] == (None, None, 6)
    assert mean_interval(values[:1]) == (0.0, None, None, None, 1)


def test_units_are_averaged_in_order_of_appearance():
    assert unit_means(np.array([1.0, 2.0, 3.0, 6.0]), ["b", "a", "b", "a"]) == pytest.approx([2, 4])
    assert mean_interval(np.array([1.0, 1.0, 4.0]), units=["a", "a", "b"]).mean == 2.5


def test_interval_of_zeros_is_zero():
    assert mean_interval(np.zeros(9), positive=True)[:4] == (0, 0, 0, 0)


@pytest.mark.parametrize("n", [8, 16, 64])
def test_jackknife_covers_a_ratio_of_means(n):
    draws = np.random.default_rng(n).gamma(4, 1, (SETS, 2, n))
    above, below = draws[:, 0] + 2, draws[:, 1] + draws[:, 0]  # means 6 and 8
    whole = above.sum(axis=1) / below.sum(axis=1)
    without = (above.sum(axis=1, keepdims=True) - above) / (below.sum(axis=1, keepdims=True) - below)
    low, high = jackknife_interval(whole, without.T)
    assert np.mean((low <= 0.75) & (high >= 0.75)) == pytest.approx(0.95, abs=0.015)


def test_jackknife_of_a_mean_is_students_interval():
    x = np.random.default_rng(2).normal(size=12)
    interval = mean_interval(x)
    assert jackknife_interval(x.mean(), (x.sum() - x) / 11) == pytest.approx((interval.low, interval.high))
    assert np.isnan(jackknife_interval(0.0, np.zeros(LEAST_UNITS - 1))).all()


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("alike", [0.0, 0.5])
def test_interval_of_shares_covers_at_least_at_its_rate(n, share, alike):
    """Units of three values; in a part `alike` of the units all three are one."""
    rng = np.random.default_rng(3)
    values = rng.random((SETS, n, 3)) < share
    one = (rng.random((SETS, n)) < alike)[..., None]
    means = np.where(one, values[..., :1], values).mean(axis=2)
    low, high = share_interval(means.mean(axis=1), means.std(axis=1, ddof=1) / np.sqrt(n), n)
    least = 0.93 if share < 0.1 and alike else 0.95
    assert np.mean((low <= share) & (share <= high)) > least - 3 * np.sqrt(0.95 * 0.05 / SETS)


def test_interval_of_a_share_of_single_values_is_close_to_clopper_and_pearsons():
    x, n = 90, 300
    error = np.sqrt(x / n * (1 - x / n) / n)
    exact = scipy.stats.binomtest(x, n).proportion_ci(0.95, "exact")
    assert share_interval(x / n, error, n) == pytest.approx((exact.low, exact.high), abs=2e-3)
    assert share_interval(0.0, 0.0, 8)[1] == pytest.approx(0.45, abs=0.1) and share_interval(1.0, 0.0, 8)[1] == 1
    assert np.isnan(share_interval(0.5, 0.1, LEAST_UNITS - 1)).all()
