"""Semantic jumps: planted ones are found, states in random order have them at the stated rate."""

import numpy as np
import polars as pl
import pytest

from ditscope.drift.jumps import jumps, jumps_of, peaks, step_sizes
from ditscope.drift.settings import Drift
from state_tables import grouped_states


@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("states", [10, 20])
def test_states_in_random_order_have_jumps_at_the_stated_rate(rate, states):
    rng = np.random.default_rng(0)
    settings = Drift(jump_false_alarms=rate)
    found = [jumps_of(rng.normal(size=(states, 6)), settings, rng)[0] for _ in range(120)]
    error = 3 * np.sqrt(rate * (1 - rate) / len(found))
    assert np.mean([jump["jump"] for jump in found]) == pytest.approx(rate, abs=error)
    assert np.mean([jump["p_value"] <= 0.5 for jump in found]) == pytest.approx(0.5, abs=0.11)


@pytest.mark.parametrize("states", [10, 20, 50])
@pytest.mark.parametrize(("size", "hits"), [(7.0, 0.65), (14.0, 0.9)])
def test_planted_jumps_are_hit(states, size, hits):
    """One jump among states of standard deviation 1 in each of 8 dimensions, which differ by 4 without one."""
    rng = np.random.default_rng(1)
    hit = 0
    for _ in range(60):
        at = int(rng.integers(states // 4, states - states // 4 + 1))
        x = rng.normal(size=(states, 8))
        x[at:, 0] += size
        found = jumps_of(x, Drift(), rng)
        hit += any(jump["jump"] and abs(jump["place"] - at) <= 1 for jump in found)
    assert hit / 60 >= hits


def test_a_walk_has_jumps_by_shuffles_but_none_beyond_a_walk():
    rng = np.random.default_rng(5)
    found = [jumps_of(rng.normal(size=(25, 6)).cumsum(axis=0), Drift(), rng) for _ in range(100)]
    assert np.mean([run[0]["jump"] for run in found]) > 0.9
    beyond = np.mean([min(jump["p_walk"] for jump in run) <= 0.05 for run in found])
    assert beyond < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(found))
    x = rng.normal(size=(25, 6))
    x[12:, 0] += 30
    (jump,) = jumps_of(x, Drift(), rng)
    assert jump["place"] == 12 and jump["p_value"] < 0.01 and jump["p_walk"] < 0.01


def test_sizes_are_differences_of_means_by_brute_force():
    x = np.random.default_rng(2).normal(size=(11, 4))
    expected = [np.linalg.norm(x[i : i + 3].mean(axis=0) - x[i - 3 : i].mean(axis=0)) for i in range(3, 9)]
    np.testing.assert_allclose(step_sizes(x, 3), expected)
    assert peaks(np.array([1, 5, 4, 2, 3, 6]), 2) == [5, 1, 3]


def test_the_table_has_the_jumps_of_each_run_in_order():
    x = np.random.default_rng(3).normal(size=(1, 3, 30, 5))
    x[0, 0, 10:] += 9
    x[0, 0, 20:] -= 40
    x[0, 1] = 1
    x[0, 2, :, :] *= 1e-3
    states = grouped_states(x).filter((pl.col("run_id") != "n:p000/002") | (pl.col("position") < 8))
    table = jumps(states)
    two = table.filter(run_id="n:p000/000")
    assert two["position"].to_list() == [10, 20] and two["sequence_number"].to_list() == [21, 41]
    assert two["number"].to_list() == [0, 1] and two["jump"].all()
    assert (two["size"] > two["threshold"]).all() and two["states"].to_list() == [30, 30]
    (same, short) = table.filter(pl.col("run_id") != "n:p000/000").to_dicts()
    assert same["reason"] == "all states are equal" and not same["jump"] and same["size"] is None
    assert short["reason"] == "8 states, jumps of 3 before and after need 9"
    wide = jumps(states, Drift(jump_states=2)).filter(run_id="n:p000/002")
    assert wide["reason"].to_list() == [None]


def test_runs_with_gaps_are_left_out():
    states = grouped_states(np.random.default_rng(4).normal(size=(1, 2, 12, 4)))
    assert jumps(states.filter(pl.col("position") != 4)).is_empty()
