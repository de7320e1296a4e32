"""Memory of the prompt: planted memory of known size, runs that never knew their prompt, and what has no scale."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest

from ditscope.drift.claims import claims_table
from ditscope.drift.memory import NO_SCALE, NO_TWINS, memory_tables
from state_tables import autoregressive, grouped_states

PHI, D = 0.7, 200  # in many dimensions lengths hardly vary, and cosine distances are as squared ones


def planted(rng, share, prompts=12, seeds=2, length=9, d=D):
    """Runs about their prompt's centre, which makes `share` of the variance of their states."""
    centres = np.sqrt(share) * rng.normal(size=(prompts, 1, 1, d))
    return centres + np.sqrt(1 - share) * autoregressive(rng, prompts, seeds, length, d, phi=PHI)


def known(share):
    """Strangers differ by 1, twins by 1 - share; the floor of such series is (1 - share) (1 - phi)^2."""
    return share / (1 - (1 - share) * (1 - PHI) ** 2)


def claim_of(x, draws=99, **kwargs):
    _, claims = memory_tables(grouped_states(x, **kwargs), draws)
    return claims_table(claims).row(0, named=True)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_planted_memory_is_found(share):
    claim = claim_of(planted(np.random.default_rng(0), share))
    assert claim["low"] < known(share) < claim["high"] and claim["high"] - claim["low"] < 0.1
    assert claim["p_value"] == 0.02 and abs(claim["null_median"]) < 0.05


@pytest.mark.parametrize(("prompts", "seeds"), [(8, 2), (16, 3)])
def test_the_interval_covers_planted_memory(prompts, seeds):
    rng = np.random.default_rng(1)
    claims = [claim_of(planted(rng, 0.3, prompts, seeds, 6, 60), draws=1) for _ in range(150)]
    # Of 60 dimensions: the mean over many prompts.
    truth = np.mean([claim_of(planted(rng, 0.3, 50, 2, 6, 60), draws=1)["statistic"] for _ in range(20)])
    covered = np.mean([row["low"] <= truth <= row["high"] for row in claims])
    assert covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(claims))


@pytest.mark.parametrize("kind", ["fixed", "derived"])
def test_runs_that_never_knew_their_prompt_have_none(kind):
    """Nor where all runs of one seed begin with one noise."""
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(100):
        x = autoregressive(rng, 8, 2, 6, 30)
        if kind == "fixed":
            x += rng.normal(size=(1, 2, 1, 30))
        rows.append(claim_of(x, kind=kind))
    rows = pl.DataFrame(rows).drop_nulls("statistic")
    assert len(rows) > 80
    assert ((rows["low"] <= 0) & (rows["high"] >= 0)).mean() > 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(rows))
    assert (rows["p_value"] <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.95 * 0.05 / len(rows))


def test_distances_are_means_over_prompts_by_brute_force():
    x = planted(np.random.default_rng(3), 0.4, 3, 3, 4, 5)
    table, _ = memory_tables(grouped_states(x), 9)
    u = x.astype(np.float32).astype(float)
    u /= np.linalg.norm(u, axis=-1, keepdims=True)
    twin = [[1 - u[p, a, t] @ u[p, b, t] for p in range(3) for a, b in combinations(range(3), 2)] for t in range(4)]
    stranger = [
        [1 - u[p, a, t] @ u[q, b, t] for p, q in combinations(range(3), 2)
         for a in range(3) for b in range(3) if a != b]
        for t in range(4)
    ]  # fmt: skip
    np.testing.assert_allclose(table["twin"], np.mean(twin, axis=1))
    np.testing.assert_allclose(table["stranger"], np.mean(stranger, axis=1))
    lag = [np.mean([1 - u[p, a, t] @ u[p, a, t + k] for p in range(3) for a in range(3) for t in range(4 - k)])
           for k in (1, 2)]  # fmt: skip
    assert table["floor"][0] == pytest.approx(2 * lag[0] - lag[1], abs=0.15 * lag[0])
    ratio = (table["stranger"] - table["twin"]) / (table["stranger"] - table["floor"])
    same = table["memory"].is_not_null()
    np.testing.assert_allclose(table["memory"].filter(same), ratio.filter(same))


@pytest.mark.parametrize("computed", [2, 3, 5])
def test_a_loop_without_noise_has_no_floor(computed):
    """Runs of two states in turn, computed up to where they come back, or further, and continued from there."""
    pair = np.random.default_rng(6).normal(size=(8, 2, 2, 40))
    states = grouped_states(np.concatenate([pair] * 6, axis=2)).with_columns(continued=pl.col("position") >= computed)
    table, _ = memory_tables(states, 9)
    assert set(table["floor"]) == {0}


def test_the_floor_is_that_of_computed_states():
    """Runs of six states, then a loop of the last three for ever: they count once."""
    x = planted(np.random.default_rng(7), 0.4, 8, 2, 6, 40)
    looped = np.concatenate([x, *[x[:, :, 3:]] * 5], axis=2)
    states = grouped_states(looped).with_columns(continued=pl.col("position") >= 6)
    floors = [memory_tables(table, 9)[0]["floor"][0] for table in (states, grouped_states(x))]
    assert floors[0] == pytest.approx(floors[1], rel=0.1) and floors[0] > 0


def test_what_cannot_be_told_says_so():
    rng = np.random.default_rng(4)
    assert claim_of(rng.normal(size=(9, 2, 8, 40)))["reason"] == NO_SCALE, "a state that forgets itself at once"
    assert claim_of(np.ones((9, 2, 8, 40)))["reason"] == NO_SCALE
    assert claim_of(planted(rng, 0.5, prompts=1))["reason"] == NO_TWINS
    assert claim_of(planted(rng, 0.5, seeds=1))["reason"] == NO_TWINS
    few = claim_of(planted(rng, 0.5, prompts=5))
    assert few["low"] is None and few["high"] is None and 0 < few["statistic"] < 1


def test_fixed_and_derived_seeds_are_never_pooled():
    rng = np.random.default_rng(5)
    both = pl.concat([grouped_states(planted(rng, 0.5)), grouped_states(planted(rng, 0.5, 9), kind="derived")])
    table, claims = memory_tables(both, 9)
    assert [(claim.group["seeds"], claim.prompts) for claim in claims] == [("fixed", 12), ("derived", 9)]
    assert table.group_by("seeds", maintain_order=True).agg(pl.col("runs").first())["runs"].to_list() == [24, 18]
