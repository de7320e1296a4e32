"""Plateau or walk: displacement by lag of known series, and how fast twins part."""

import numpy as np
import polars as pl
import pytest

from ditscope.drift import displacement, divergence
from ditscope.drift.claims import claims_table
from ditscope.drift.displacement import NO_MOVES, NO_RUNS, by_lag, displacement_tables, squared_distances, thirds
from ditscope.drift.divergence import TOGETHER, divergence_tables
from ditscope.drift.memory import NO_TWINS
from state_tables import autoregressive, grouped_states


def walk(rng, *shape):
    return rng.normal(size=shape).cumsum(axis=-2)


def claims(tables, x, *draws):
    table, claimed = tables(grouped_states(x), *draws or (() if tables is divergence_tables else (99,)))
    return table, {
        row["claim"]: row for row in claims_table(claimed).with_columns(pl.col("claim").cast(pl.String)).to_dicts()
    }


def test_displacement_by_brute_force():
    x = np.random.default_rng(0).normal(size=(2, 7, 3))
    curves = by_lag(squared_distances(x))
    for run, lag in ((0, 1), (1, 3), (0, 6)):
        pairs = [np.sum((x[run, t] - x[run, t + lag]) ** 2) for t in range(7 - lag)]
        assert curves[run, lag - 1] == pytest.approx(np.mean(pairs))


def test_a_walk_without_end_gives_five_thirds():
    """As its squared displacement is the lag: 5/6 over 1/2 of all lags."""
    assert thirds(np.arange(1.0, 3001)) == pytest.approx(5 / 3, abs=1e-3)
    _, claimed = claims(displacement_tables, walk(np.random.default_rng(1), 40, 1, 40, 30))
    assert claimed["walk"]["low"] < 5 / 3 < claimed["walk"]["high"]
    assert claimed["walk"]["p_value"] > 0.05 > claimed["plateau"]["p_value"]
    assert claimed["walk"]["null_median"] == pytest.approx(5 / 3, abs=0.05)


def test_independent_states_are_a_plateau():
    _, claimed = claims(displacement_tables, np.random.default_rng(2).normal(size=(20, 1, 30, 10)))
    assert claimed["plateau"]["low"] < 1 < claimed["plateau"]["high"]
    assert claimed["plateau"]["p_value"] > 0.05 > claimed["walk"]["p_value"]


@pytest.mark.parametrize(("claim", "data"), [("walk", walk), ("plateau", lambda rng, *shape: rng.normal(size=shape))])
def test_of_data_from_the_null_one_in_twenty_is_rejected(claim, data):
    rng = np.random.default_rng(3)
    p = np.array([claims(displacement_tables, data(rng, 6, 1, 10, 5))[1][claim]["p_value"] for _ in range(120)])
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))
    assert (p <= 0.5).mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("claim", "data"), [("walk", walk), ("plateau", lambda rng, *shape: rng.normal(size=shape))])
def test_nor_are_more_where_the_runs_of_a_prompt_are_copies(claim, data):
    rng = np.random.default_rng(11)
    p = np.array([
        claims(displacement_tables, data(rng, 8, 1, 10, 5).repeat(4, axis=1))[1][claim]["p_value"] for _ in range(120)
    ])  # fmt: skip
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))


@pytest.mark.parametrize("prompts", [8, 16])
def test_the_interval_covers_the_growth_of_a_series_of_known_coefficient(prompts):
    """D(lag) = 2 d (1 - phi^lag); two runs of each prompt."""
    rng, phi = np.random.default_rng(4), 0.8
    truth = thirds(1 - phi ** np.arange(1.0, 15))
    rows = [
        claims(displacement_tables, autoregressive(rng, prompts, 2, 15, 6, phi=phi), 1)[1]["walk"] for _ in range(200)
    ]
    covered = np.mean([row["low"] <= truth <= row["high"] for row in rows])
    assert covered == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / len(rows)) + 0.01)


def test_bands_hold_the_walk_and_the_shuffles():
    table, _ = claims(displacement_tables, walk(np.random.default_rng(5), 20, 1, 20, 10))
    assert table["lag"].to_list() == list(range(1, 20)) and set(table["runs"]) == {20}
    np.testing.assert_allclose(table["walk_median"], 10 * table["lag"], rtol=0.15)
    assert (table["walk_low"] < table["displacement"])[2:].all() and (table["displacement"] < table["walk_high"])[
        2:
    ].all()
    assert table["plateau_median"].std() < 0.1 * table["plateau_median"].mean()


def test_what_cannot_be_told_says_so():
    assert {row["reason"] for row in claims(displacement_tables, np.ones((8, 1, 9, 3)))[1].values()} == {NO_MOVES}
    short = np.random.default_rng(6).normal(size=(8, 1, displacement.FEWEST_STATES - 1, 3))
    table, claimed = claims(displacement_tables, short)
    assert table.is_empty() and {row["reason"] for row in claimed.values()} == {NO_RUNS}


# Twins that part ----------------------------------------------------------------------------------------------------


def parting(rng, rate, prompts=10, length=20, d=30, start=0.002, most=0.4):
    """Twins on the sphere whose distance grows at the rate, with some noise, up to `most`."""
    x = np.zeros((prompts, 2, length, d))
    x[..., 0] = 1
    for p in range(prompts):
        away = np.linalg.qr(rng.normal(size=(d - 1, length)))[0].T
        distance = np.minimum(start * np.exp(rate * np.arange(length) + 0.1 * rng.normal(size=length)), most)
        x[p, 1, :, 1:] = distance[:, None] * away
    return x


@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_a_planted_rate_is_found_and_its_saturation_named(rate):
    table, claimed = claims(divergence_tables, parting(np.random.default_rng(7), rate))
    row, far = claimed["rate"], claimed["divergence"]
    assert row["statistic"] == pytest.approx(rate, rel=0.1) and row["low"] - 0.05 < rate < row["high"] + 0.05
    assert far["statistic"] == pytest.approx(np.log(0.4 / 0.002 / 2), rel=0.2)
    saturated = table["saturated"].to_list()
    assert saturated.index(True) == pytest.approx(np.log(0.4 / 0.002) / rate, abs=2) and saturated == sorted(saturated)


@pytest.mark.parametrize("prompts", [8, 16])
@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_the_interval_covers_a_planted_rate(prompts, rate):
    rng = np.random.default_rng(10)
    rows = [claims(divergence_tables, parting(rng, rate, prompts))[1]["rate"] for _ in range(120)]
    covered = np.mean([row["low"] <= rate <= row["high"] for row in rows])
    assert covered == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / len(rows)))


def test_twins_that_are_strangers_from_the_start_do_not_part():
    rng = np.random.default_rng(8)
    rows = [claims(divergence_tables, rng.normal(size=(8, 2, 15, 10)))[1]["divergence"] for _ in range(60)]
    assert not any(row["statistic"] is not None and row["statistic"] > 1 for row in rows)
    assert any((row["reason"] or "").startswith("saturated at position") for row in rows)


def walking(rng):
    """Twins that begin near one another, far from the origin, and walk."""
    return 10 * rng.normal(size=(8, 1, 1, 30)) + 0.1 * walk(rng, 8, 2, 60, 30)


@pytest.mark.parametrize("data", [walking, lambda rng: parting(rng, 0.3)])
def test_no_growth_is_called_more_than_nothing_gives(data):
    """Twins that are walks part too: against shuffled positions each of them would be found to grow."""
    _, claimed = claims(divergence_tables, data(np.random.default_rng(12)))
    for row in claimed.values():
        assert row["low"] < row["statistic"] < row["high"]
        assert row["p_value"] is None and row["draws"] is None and row["reason"] == divergence.UNTESTED


def test_twins_that_never_part_or_are_none_say_so():
    x = np.random.default_rng(9).normal(size=(8, 1, 9, 5)).repeat(2, axis=1)
    table, claimed = claims(divergence_tables, x)
    assert claimed["divergence"]["reason"] == TOGETHER and set(table["equal"]) == {1.0}
    assert claims(divergence_tables, x[:, :1])[1]["divergence"]["reason"] == NO_TWINS
    assert divergence.slope(np.exp(0.25 * np.arange(5))) == pytest.approx(0.25)
