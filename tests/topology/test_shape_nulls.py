"""Shapes beside their nulls: circles say more than chance; walks, clouds and copies do not."""

import numpy as np
import polars as pl
import pytest

from ditscope.core import nulls as core_nulls
from ditscope.topology import nulls
from ditscope.topology.nulls import FEWEST_STATES, shape_tests


def states(runs, seeds=1):
    """Generated states of runs (states, d); so many runs after another have one prompt."""
    return pl.concat(
        pl.DataFrame(
            {
                "embedder": "e", "network": "n", "run_id": f"r{i:03d}", "prompt_id": f"p{i // seeds:03d}",
                "sequence_number": pl.Series(2 * np.arange(len(x)) + 1, dtype=pl.Int32),
                "position": np.arange(len(x)), "vector": np.asarray(x, np.float32).tolist(),
            },
            schema_overrides={"vector": pl.List(pl.Float32)},
        )
        for i, x in enumerate(runs)
    )  # fmt: skip


def normal(rng, runs=8, length=14, d=6):
    return 4 * np.eye(d)[0] + rng.normal(size=(runs, length, d))


def walk(rng, runs=8, length=14, d=6):
    return 8 * np.eye(d)[0] + rng.normal(size=(runs, length, d)).cumsum(axis=1)


def circles(rng, runs=8, length=14, d=6):
    angle = np.linspace(0, 2 * np.pi, length, endpoint=False) + rng.uniform(0, 6, size=(runs, 1))
    x = 2 * np.eye(d)[0] + 0.03 * rng.normal(size=(runs, length, d))
    x[..., 1] += np.cos(angle)
    x[..., 2] += np.sin(angle)
    return x


def rows_of(x, seeds=1):
    table = shape_tests(states(x, seeds), 1)
    return {(row["dimension"], row["null"]): row for row in table.iter_rows(named=True)}


def test_circles_have_longer_loops_than_chance():
    rows = rows_of(circles(np.random.default_rng(0)))
    for null in ("walk", "normal"):
        row = rows["H₁", null]
        assert row["p_holm"] < 0.05 and row["statistic"] > row["null_high"]
        assert (row["verdict"], row["runs"], row["prompts"], row["draws"]) == ("longer than chance", 8, 8, 999)
    assert rows["H₀", "walk"]["verdict"] == "no more than chance" or rows["H₀", "walk"]["statistic"] > 0


@pytest.mark.parametrize(("data", "null"), [(normal, "normal"), (walk, "walk")])
def test_of_data_from_a_null_one_in_twenty_is_rejected_by_it(data, null, monkeypatch):
    monkeypatch.setattr(core_nulls, "DRAWS", 199)
    monkeypatch.setattr(nulls, "MADE", 150)
    rng = np.random.default_rng(1)
    rows = [rows_of(data(rng, length=10)) for _ in range(60)]
    for dimension in ("H₀", "H₁"):
        p = np.array([row[dimension, null]["p_value"] for row in rows])
        assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p)), dimension
        told = [row[dimension, null]["verdict"] != "no more than chance" for row in rows]
        assert np.mean(told) < 0.1


def test_copies_count_once_and_repeated_states_not_at_all():
    rng = np.random.default_rng(2)
    x = walk(rng, runs=5)
    once, copied = rows_of(x), rows_of(np.repeat(x, 4, axis=0), seeds=4)
    repeated = rows_of(np.repeat(x, 2, axis=1))
    for key, row in once.items():
        assert copied[key]["statistic"] == pytest.approx(row["statistic"])
        assert repeated[key]["statistic"] == pytest.approx(row["statistic"], rel=1e-5)
        assert (copied[key]["prompts"], copied[key]["runs"], repeated[key]["distinct_states"]) == (5, 20, 14)
        wide, as_wide = (r["null_high"] - r["null_low"] for r in (row, copied[key]))
        assert as_wide == pytest.approx(wide, rel=0.2), "as independent runs they would be half as wide"
    assert once["H₀", "walk"]["duplicate_correlation"] is None


def test_states_that_hardly_differ_have_a_reason():
    few = shape_tests(states(np.repeat(normal(np.random.default_rng(3), length=FEWEST_STATES - 1), 5, axis=1)), 2)
    assert set(few["reason"]) == {"no run has 4 to 100 distinct states"}
    assert few["p_value"].null_count() == few["verdict"].null_count() == len(few) == 4
