"""Draws, p-values and their correction: what can be found at all, and what equal values give."""

import numpy as np
import polars as pl
import pytest

from ditscope.core.nulls import DRAWS, as_large, draws_for, holm, two_sided


@pytest.mark.parametrize("tests", [1, 24, 25, 120, 1000])
def test_the_smallest_p_value_can_be_below_5_percent_after_correction(tests):
    """Of two-sided tests 20 draws each are too few: of 120 tests none could have p below 0.1."""
    for sides, p_of in ((2, two_sided), (1, as_large)):
        null = np.zeros(draws_for(tests, sides))
        assert len(null) >= DRAWS
        assert p_of(1.0, null) * tests < 0.05


def test_p_values_count_the_observed_one_and_equal_ones():
    null = np.array([0.0, 1, 2, 3])
    assert as_large(3, null) == 2 / 5 and as_large(4, null) == 1 / 5 and as_large(-1, null) == 1
    assert two_sided(3, null) == 2 * 2 / 5 and two_sided(4, null) == 2 / 5 and two_sided(1.5, null) == 1
    assert two_sided(3 + 1e-9, null) == two_sided(3, null), "roundings of equal values"


def test_holm_is_stepwise_and_leaves_out_what_is_no_test():
    frame = pl.DataFrame({"p": [0.01, None, 0.04, 0.03, 0.5]})
    found = frame.select(holm(pl.col("p"))).to_series().to_list()
    assert found == [pytest.approx(x) if x is not None else None for x in (0.04, None, 0.09, 0.09, 0.5)]
