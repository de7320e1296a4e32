"""Confidence intervals of means over what was drawn (images, prompts, runs): Student's t, one function for all."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit
from scipy.stats import ttest_ind

LEAST_UNITS = 8  # fewer are shown as points, without an interval


class MeanInterval(NamedTuple):
    """A mean over units and its two-sided interval."""

    mean: float
    std: float | None  # of the units (n - 1 below); std / sqrt(units) is the standard error; None for one unit
    low: float | None  # None below LEAST_UNITS units
    high: float | None
    units: int


def unit_means(values: np.ndarray, units: Sequence[Hashable]) -> np.ndarray:
    """The mean of the values (n,) of each unit, in order of first appearance. `units` names the unit of each value."""
    numbers = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    index = np.array([numbers[unit] for unit in units], int)
    return np.bincount(index, weights=values) / np.bincount(index)


def ratio_interval(
    above: Sequence[float], below: Sequence[float], level: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """Welch's t interval of the ratio of two geometric means of positive samples.

    None below LEAST_UNITS samples of either, and where no sample differs from another.
    """
    if min(len(above), len(below)) < LEAST_UNITS or (np.ptp(above) == 0 and np.ptp(below) == 0):
        return None, None
    logarithm = ttest_ind(np.log(above), np.log(below), equal_var=False).confidence_interval(level)
    return float(np.exp(logarithm.low)), float(np.exp(logarithm.high))


def mean_interval(
    values: np.ndarray, units: Sequence[Hashable] | None = None, level: float = 0.95, positive: bool = False
) -> MeanInterval:
    """Student's t interval of a mean (n,), over independent units.

    Values of one unit (all timesteps of an image, all seeds of a prompt) are averaged first, since they are not
    independent: n is the number of units. Without `units` each value is one. `positive` is for means of positive,
    skewed values (squared errors): the interval is that of the logarithm of the mean, by the delta method, so that it
    stays above 0. Coverage at the nominal 95 %: exact for normal values; for single chi-squared values of one degree of
    freedom, the worst case here, 84, 90 and 93 % at n = 8, 16 and 64, with `positive` 91, 93 and 94 %.
    """
    values = np.asarray(values, float)
    if units is not None:
        values = unit_means(values, units)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return MeanInterval(mean, None, None, None, n)
    std = float(values.std(ddof=1))
    if n < LEAST_UNITS:
        return MeanInterval(mean, std, None, None, n)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * std / np.sqrt(n)
    if not positive:
        return MeanInterval(mean, std, mean - half, mean + half, n)
    factor = float(np.exp(half / mean)) if mean else 1.0
    return MeanInterval(mean, std, mean / factor, mean * factor, n)


def jackknife_error(without: np.ndarray) -> np.ndarray:
    """Standard error (...) of an estimate from those `without` each of n units (n, ...) (Tukey 1958)."""
    n = len(without)
    return np.sqrt((n - 1) * np.square(without - without.mean(axis=0)).mean(axis=0))


def jackknife_interval(
    whole: np.ndarray | float, without: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of an estimate `whole` (...) of n units, from the estimates `without` each of them (n, ...).

    Student's t with n - 1 degrees of freedom and the jackknife's standard error (Miller 1974): for smooth functions of
    means, as ratios, and of means over pairs of units. NaN below LEAST_UNITS units.
    """
    few = len(without) < LEAST_UNITS
    half = np.nan if few else stdtrit(len(without) - 1, (1 + level) / 2) * jackknife_error(without)
    return np.asarray(whole - half), np.asarray(whole + half)


def share_interval(
    share: np.ndarray, error: np.ndarray, units: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of shares (...) with their standard errors over `units` (...) independent units (Korn & Graubard 1998).

    Clopper & Pearson's of as many independent values as have that error, corrected for the degrees of freedom; where
    all values are equal, as many as there are units. It stays within 0 to 1 and covers at least at its level, but for
    rare values in units that are mostly alike (93 % at a share of 5 % in 64 units). NaN below LEAST_UNITS units.
    """
    share, error, units = np.broadcast_arrays(*(np.asarray(x, float) for x in (share, error, units)))
    few = units < LEAST_UNITS
    freedom = np.where(few, LEAST_UNITS, units) - 1
    varies = (error > 0) & (share > 0) & (share < 1)
    n = np.where(varies, share * (1 - share) / np.where(varies, error, 1) ** 2, freedom + 1)
    n = n * (ndtri((1 + level) / 2) / stdtrit(freedom, (1 + level) / 2)) ** 2
    x, tail = share * n, (1 - level) / 2
    low = np.where(x > 0, betaincinv(np.maximum(x, 1e-12), n - x + 1, tail), 0)
    high = np.where(x < n, betaincinv(x + 1, np.maximum(n - x, 1e-12), 1 - tail), 1)
    return np.where(few, np.nan, low), np.where(few, np.nan, high)
