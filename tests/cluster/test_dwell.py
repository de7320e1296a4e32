"""Dwell times: the interval against Greenwood's, and its coverage of planted chains."""

import numpy as np
import polars as pl
import pytest

from ditscope.cluster.dwell import dwell_times, intervals
from ditscope.cluster.sequences import run_lengths

LEAVE = 0.2  # probability to leave a cluster at each step
DURATIONS = (1, 3, 6)


def chains(rng, prompts, runs, length, copies=False):
    """Labels (prompts, runs, length) of chains that leave their cluster with probability LEAVE at each step."""
    left = rng.random((prompts, 1 if copies else runs, length)) < LEAVE
    left[:, :, 0] = False
    return np.repeat(left.cumsum(axis=2) % 3, runs if copies else 1, axis=1)


def table_of(labels):
    """The table `clusters` of labels (prompts, runs, length)."""
    prompt, run, position = (x.ravel() for x in np.indices(labels.shape))
    return pl.DataFrame(
        {
            "embedder": "e", "network": "n", "run_id": [f"{p}-{r}" for p, r in zip(prompt, run, strict=True)],
            "prompt_id": prompt.astype(str), "seed": run, "position": position, "sequence_number": 2 * position + 1,
            "label": labels.ravel(),
        }
    )  # fmt: skip


def test_of_single_stays_the_variance_is_greenwoods():
    rng = np.random.default_rng(0)
    duration, seen = rng.integers(1, 8, size=60), rng.random(60) < 0.7
    times = np.arange(1, 8)
    left = (duration[:, None] >= times).astype(int)
    exits = ((duration[:, None] == times) & seen[:, None]).astype(int)
    survival, low, high = intervals(exits, left)
    d, n = exits.sum(axis=0), left.sum(axis=0)
    greenwood = np.sqrt(np.cumsum(d / (n * (n - d))) * 60 / 59)
    reach = np.exp(2.001 * greenwood / -np.log(survival))  # Student's t at 59 degrees of freedom
    np.testing.assert_allclose(low, survival**reach, rtol=1e-3)
    np.testing.assert_allclose(high, survival ** (1 / reach), rtol=1e-3)


@pytest.mark.parametrize(("prompts", "runs", "length", "copies"), [
    (8, 1, 40, False), (16, 2, 16, False), (16, 4, 24, False), (32, 1, 16, False), (16, 4, 24, True),
])  # fmt: skip
def test_intervals_hold_the_truth_in_95_of_100_studies(prompts, runs, length, copies):
    """Also where the runs of a prompt are copies, which as independent stays would leave a half as wide interval."""
    rng = np.random.default_rng(1)
    held = {duration: [] for duration in DURATIONS}
    for _ in range(300):
        table = dwell_times(run_lengths(table_of(chains(rng, prompts, runs, length, copies))))
        for row in table.filter(pl.col("duration").is_in(DURATIONS)).drop_nulls("low").iter_rows(named=True):
            held[row["duration"]].append(row["low"] <= (1 - LEAVE) ** row["duration"] <= row["high"])
    for duration, inside in held.items():
        if len(inside) >= 200:
            assert 0.90 <= np.mean(inside) <= 0.985, (duration, len(inside), np.mean(inside))
    assert any(len(inside) >= 200 for inside in held.values())


def test_few_prompts_have_no_interval():
    rng = np.random.default_rng(2)
    table = dwell_times(run_lengths(table_of(chains(rng, 7, 6, 30))))
    assert table["low"].null_count() == table["high"].null_count() == len(table)
    assert table["prompts"].max() == 7 and table["survival"].null_count() == 0
