"""Nulls of drift: data of no order, walks, and what goes further or less far than they do."""

import numpy as np
import polars as pl
import pytest

from ditscope.core import nulls as core_nulls
from ditscope.drift import nulls
from ditscope.drift.nulls import FEWEST_STATES, null_tests


def states(*runs, network="n", embedder="e", seeds=1):
    """The states of runs (states, d), the first of each at sequence number -1; a prompt has `seeds` of them."""
    return pl.concat(
        pl.DataFrame(
            {
                "embedder": embedder, "network": network, "run_id": f"r{i:03d}",
                "prompt_id": f"p{i // seeds:03d}",
                "sequence_number": pl.Series(2 * np.arange(len(x)) - 1, dtype=pl.Int32),
                "position": np.arange(len(x)) - 1, "vector": np.asarray(x, np.float32).tolist(),
            },
            schema_overrides={"vector": pl.List(pl.Float32)},
        )
        for i, x in enumerate(runs)
    )  # fmt: skip


def independent(rng, runs=6, length=8, d=5):
    return rng.normal(size=(runs, length, d))


def walk(rng, runs=6, length=8, d=5):
    return rng.normal(size=(runs, length, d)).cumsum(axis=1)


def directed(rng, runs=6, length=8, d=5):
    return (rng.normal(size=(runs, 1, d)) + 0.5 * rng.normal(size=(runs, length, d))).cumsum(axis=1)


def found(x, claim, seeds=1):
    return null_tests(states(*x, seeds=seeds))[0].filter(pl.col("claim").cast(pl.String) == claim).row(0, named=True)


@pytest.mark.parametrize(("claim", "data"), [("ordered", independent), ("walk", walk)])
def test_of_data_from_the_null_one_in_twenty_is_rejected(claim, data, monkeypatch):
    monkeypatch.setattr(core_nulls, "DRAWS", 99)
    rng = np.random.default_rng(0)
    p = np.array([found(data(rng), claim)["p_value"] for _ in range(120)])
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))
    assert (p <= 0.5).mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("claim", "data"), [("ordered", independent), ("walk", walk)])
@pytest.mark.parametrize("alike", [1.0, 0.7])
def test_runs_of_one_prompt_that_go_together_count_as_one(claim, data, alike, monkeypatch):
    """Copies, and runs that share a part. Copies that are taken for independent runs are rejected far too often."""
    monkeypatch.setattr(core_nulls, "DRAWS", 99)
    rng = np.random.default_rng(10)

    def study():
        x = np.repeat(data(rng, runs=5), 6, axis=0)
        return alike * x + np.sqrt(1 - alike**2) * data(rng, runs=30)

    p = np.array([found(study(), claim, seeds=6)["p_value"] for _ in range(80)])
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))
    if alike == 1:
        apart = np.array([found(study(), claim)["p_value"] for _ in range(40)])
        assert (apart <= 0.05).mean() > 0.2


def test_companions_are_the_runs_of_the_prompt_in_a_circle():
    rank, partners = nulls.companions(np.array([0, 1, 0, 0, 2]))
    assert rank.tolist() == [0, 0, 1, 2, 0]
    assert partners.tolist() == [[0, 2, 3], [1, 1, 1], [2, 3, 0], [3, 0, 2], [4, 4, 4]]


@pytest.mark.parametrize(
    ("claim", "data", "more"), [("ordered", walk, True), ("walk", independent, False), ("walk", directed, True)]
)
def test_what_differs_from_the_null_is_told(claim, data, more):
    rng = np.random.default_rng(1)
    for _ in range(3):
        row = found(data(rng, runs=12, length=12), claim)
        assert row["p_value"] < 0.01
        assert (row["statistic"] > row["null_high"]) if more else (row["statistic"] < row["null_low"])


def test_walks_are_as_far_by_inner_products_as_by_sums():
    rng = np.random.default_rng(5)
    increments, chosen = rng.normal(size=(30, 7)), rng.integers(30, size=(4, 9))
    expected = [[np.linalg.norm(sum(increments[i] for i in run[: t + 1])) for t in range(9)] for run in chosen]
    for products in (None, increments @ increments.T):
        np.testing.assert_allclose(nulls.walk_distances(chosen, increments, products), expected)


def test_bands_are_of_the_null_at_each_state():
    rng = np.random.default_rng(2)
    x = independent(rng, runs=9, length=9)
    bands = null_tests(states(*x, *independent(rng, runs=3, length=5)))[1]
    shuffled = bands.filter(pl.col("claim").cast(pl.String) == "ordered")
    assert shuffled["sequence_number"].to_list() == list(range(1, 17, 2))
    assert shuffled["runs"].to_list() == [12] * 4 + [9] * 4
    assert (shuffled["low"] <= shuffled["median"]).all() and (shuffled["median"] <= shuffled["high"]).all()
    walked = bands.filter(pl.col("claim").cast(pl.String) == "walk")
    # A walk of increments of variance 2 in 5 dimensions: about sqrt(10 t) away after t of them.
    np.testing.assert_allclose(walked["median"], np.sqrt(10 * np.arange(1, 9)), rtol=0.2)
    assert (walked["observed"][3:] < walked["low"][3:]).all()


def test_p_values_are_corrected_for_all_tests_and_draws_grow_with_them(monkeypatch):
    monkeypatch.setattr(core_nulls, "DRAWS", 99)
    rng = np.random.default_rng(3)
    table = null_tests(pl.concat([states(*walk(rng), network=f"n{i}") for i in range(4)]))[0]
    assert table["draws"].to_list() == [320] * 8
    p = table["p_value"].sort().to_list()
    corrected = np.maximum.accumulate([min(1, (8 - i) * value) for i, value in enumerate(p)])
    np.testing.assert_allclose(table["p_holm"].sort(), corrected)


def test_runs_with_gaps_and_short_ones_are_left_out():
    rng = np.random.default_rng(4)
    table = states(*independent(rng, runs=3, length=6))
    holed = table.filter((pl.col("run_id") != "r001") | (pl.col("position") != 2))
    assert null_tests(holed)[0]["runs"].to_list() == [2, 2]
    short = states(*independent(rng, runs=3, length=FEWEST_STATES))
    tests, bands = null_tests(short)
    assert bands.is_empty() and tests["p_value"].null_count() == 2
    assert set(tests["reason"]) == {"no run without gaps has 3 states after its first"}


def test_states_that_never_move_are_no_drift():
    tests, _ = null_tests(states(*np.ones((4, 8, 3))))
    assert tests["p_value"].to_list() == [1, 1] and tests["statistic"].to_list() == [0, 0]
