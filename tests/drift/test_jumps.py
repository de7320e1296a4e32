"""Semantic jumps: planted ones are found, states in random order have them at the stated rate."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ditscope.drift.jumps import jumps, jumps_of, peaks, step_sizes
from ditscope.drift.settings import Drift
from state_tables import grouped_states

DOCS = Path(__file__).parents[2] / "docs/outputs/drift.md"


@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("states", [10, 20])
def test_states_in_random_order_have_jumps_at_the_stated_rate(rate, states):
    rng = np.random.default_rng(0)
    settings = Drift(jump_false_alarms=rate)
    jumps = [jumps_of(rng.normal(size=(states, 6)), settings, rng)[0] for _ in range(120)]
    error = 3 * np.sqrt(rate * (1 - rate) / len(jumps))
    assert np.mean([jump["jump"] for jump in jumps]) == pytest.approx(rate, abs=error)
    assert np.mean([jump["p_value"] <= 0.5 for jump in jumps]) == pytest.approx(0.5, abs=0.11)


def hit_rates(states, size, runs):
    """How often one jump is found at its place, and with a `p_walk` up to 0.05.

    The states vary by 1 in each of 8 dimensions: those that follow each other are about 4 apart.
    """
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(runs):
        at = int(rng.integers(states // 4, states - states // 4 + 1))
        x = rng.normal(size=(states, 8))
        x[at:, 0] += size
        here = [jump for jump in jumps_of(x, Drift(), rng) if jump["jump"] and abs(jump["place"] - at) <= 1]
        hits.append((bool(here), any(jump["p_walk"] <= 0.05 for jump in here)))
    return np.mean(hits, axis=0)


@pytest.mark.parametrize(("states", "size", "hits"), [(10, 14, 0.8), (20, 7, 0.85), (20, 14, 0.95), (50, 7, 0.8)])
def test_planted_jumps_are_hit(states, size, hits):
    assert hit_rates(states, size, 60)[0] >= hits


@pytest.mark.system
def test_the_docs_say_how_often_jumps_are_hit():
    text = DOCS.read_text()
    section = text[text.index("How often one planted jump") :]
    printed_rows = [re.findall(r"(\d+)% \((\d+)%\)", line) for line in section.splitlines()]
    rows = [row for row in printed_rows if row]
    assert [len(row) for row in rows] == [4, 4, 4]
    for states, row in zip((10, 20, 50), rows, strict=True):
        for steps, printed in zip((1.25, 1.75, 2.5, 3.5), row, strict=True):
            np.testing.assert_allclose(100 * hit_rates(states, 4 * steps, 150), list(map(int, printed)), atol=5)


def test_a_walk_has_jumps_by_shuffles_but_none_beyond_a_walk():
    rng = np.random.default_rng(5)
    jumps = [jumps_of(rng.normal(size=(25, 6)).cumsum(axis=0), Drift(), rng) for _ in range(100)]
    assert np.mean([run[0]["jump"] for run in jumps]) > 0.9
    beyond = np.mean([min(jump["p_walk"] for jump in run) <= 0.05 for run in jumps])
    assert beyond < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(jumps))
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
    assert same["reason"] == "degenerate: all states are equal" and not same["jump"] and same["size"] is None
    assert short["reason"] == "8 states, jumps of 3 before and after need 9"
    wide = jumps(states, Drift(jump_states=2)).filter(run_id="n:p000/002")
    assert wide["reason"].to_list() == [None]


def test_runs_with_gaps_are_left_out_and_named():
    states = grouped_states(np.random.default_rng(4).normal(size=(1, 2, 12, 4)))
    gap = (pl.col("position") == 4) & (pl.col("run_id") == "n:p000/001")
    whole, left = jumps(states.filter(~gap)).to_dicts()
    assert whole["reason"] is None and whole["size"] > 0
    assert (left["run_id"], left["states"], left["reason"]) == ("n:p000/001", 11, "states are missing")
    assert left["number"] == 0 and not left["jump"] and left["size"] is left["p_walk"] is None


def test_every_run_has_a_row(monkeypatch):
    """Of four runs that can be tested two are drawn; one that has a prompt alone, and a short one, take no place."""
    monkeypatch.setattr("ditscope.drift.jumps.MOST_RUNS", 2)
    states = grouped_states(np.random.default_rng(6).normal(size=(6, 1, 12, 4)))
    prompt = states.filter(run_id="n:p004/000", position=0).with_columns(position=pl.lit(-1, pl.Int64))
    short = (pl.col("run_id") == "n:p005/000") & (pl.col("position") > 2)
    states = pl.concat([states.filter(pl.col("run_id") < "n:p004/000"), prompt,
                        states.filter(pl.col("run_id") == "n:p005/000").filter(~short)])  # fmt: skip
    table = jumps(states)
    assert table["run_id"].unique().sort().to_list() == [f"n:p{i:03d}/000" for i in range(6)]
    reasons = table.group_by("run_id").agg(pl.col("reason").first()).sort("run_id")["reason"].to_list()
    assert sorted(reasons[:4], key=str) == [None, None, *["not drawn: 2 of 4 runs are tested"] * 2]
    assert reasons[4:] == [f"{n} states, jumps of 3 before and after need 9" for n in (0, 3)]
