"""Tests against drawn nulls: how many draws, p-values, and their correction for the number of tests."""

import numpy as np
import polars as pl

DRAWS = 999


def draws_for(tests: int, sides: int = 2) -> int:
    """Draws from a null for a family of so many tests, of so many sides each.

    The least p-value, sides / (draws + 1), times the number of tests must be below 0.05: else nothing could be found.
    """
    return max(DRAWS, 20 * sides * tests)


def two_sided(observed: float, null: np.ndarray) -> float:
    """Twice the smaller share of draws that are as far out, the observed one among them (Phipson & Smyth 2010)."""
    # Equal distances differ by the roundings of the ways in which they are computed.
    slack = 1e-7 * max(1.0, abs(observed))
    above, below = (null >= observed - slack).sum(), (null <= observed + slack).sum()
    return float(min(1.0, 2 * (min(above, below) + 1) / (len(null) + 1)))


def as_large(observed: float, null: np.ndarray) -> float:
    """Share of draws that are as large, the observed one among them (Phipson & Smyth 2010)."""
    return float(((null >= observed - 1e-7 * max(1.0, abs(observed))).sum() + 1) / (len(null) + 1))


def holm(p: pl.Expr) -> pl.Expr:
    """p-values corrected for their number by the step-down procedure of Holm 1979; nulls are no tests."""
    tests, order = p.count(), p.rank("ordinal")
    stepped = ((tests - order + 1) * p).clip(upper_bound=1)
    return stepped.sort_by(p, nulls_last=True).cum_max().gather(p.arg_sort(nulls_last=True).arg_sort())
