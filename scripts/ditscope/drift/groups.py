"""Runs of one kind as arrays: under one embedder, of one network, with fixed or with derived seeds."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from ditscope.core.identity import derived_seed
from ditscope.embed.files import parts_of, run_starts, vectors

KIND = ["embedder", "network", "seeds"]
MOST_RUNS = 100  # of a group, sampled by prompts where there are more: what is drawn costs runs^2 or runs x states^2


@dataclass(frozen=True)
class Runs:
    """Runs without gaps and of one length."""

    x: np.ndarray  # vectors (runs, states, d), in float64
    prompts: np.ndarray  # number of each run's prompt, from 0
    seeds: np.ndarray  # seed of each run
    sequence_numbers: list[int]  # of its states
    computed: np.ndarray  # which of them (runs, states) do not follow from a loop

    def __len__(self) -> int:
        return len(self.x)


def generated(states: pl.DataFrame) -> pl.DataFrame:
    """States without the initial prompts, which runs share by design."""
    return states.filter(pl.col("position") >= 0)


def by_kind(states: pl.DataFrame) -> Iterator[tuple[dict, pl.DataFrame]]:
    """The generated states of each embedder, network and kind of seeds, and what they are, in order."""
    for rows in parts_of(states, "embedder", "network"):
        for part in generated(rows).sort("seeds", "run_id", "sequence_number").partition_by(KIND, maintain_order=True):
            yield {name: part[name][0] for name in KIND}, part


def longest_runs(states: pl.DataFrame, prompts_of: int = 1) -> Runs:
    """The runs of a group without gaps that are as long as its longest one, at most MOST_RUNS of them.

    Prompts with fewer than `prompts_of` such runs are left out. Where there are more than MOST_RUNS, prompts are drawn
    at random, and of each an equal number of runs, at least `prompts_of`.
    """
    starts, positions = run_starts(states), states["position"].to_numpy()
    spans = [(a, b) for a, b in pairwise(starts) if (np.diff(positions[a:b]) == 1).all()]
    most = max((b - a for a, b in spans), default=0)
    first = np.array([a for a, b in spans if b - a == most], int)
    names = states["prompt_id"].gather(first).to_numpy()
    _, number, count = np.unique(names, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(derived_seed("sampled runs", *states.select(KIND).unique().row(0)) if len(first) else 0)
    chosen = np.flatnonzero(count >= prompts_of)
    each = max(prompts_of, MOST_RUNS // max(1, len(chosen)))
    if len(chosen) * prompts_of > MOST_RUNS:
        chosen = np.sort(rng.choice(chosen, MOST_RUNS // prompts_of, replace=False))
    kept = [np.sort(rng.permutation(np.flatnonzero(number == p))[:each]) for p in chosen]
    rows = np.sort(np.concatenate(kept)) if kept else np.zeros(0, int)
    first = first[rows]
    places = first[:, None] + np.arange(most if len(first) else 0)
    return Runs(
        vectors(states)[places].astype(np.float64),
        np.unique(number[rows], return_inverse=True)[1],
        states["seed"].gather(first).to_numpy(),
        states["sequence_number"].gather(places[:1].ravel()).to_list(),
        ~states["continued"].to_numpy()[places],
    )


def rng_of(what: str, group: dict) -> np.random.Generator:
    """The random generator of a group, for one purpose."""
    return np.random.default_rng(derived_seed(what, *map(str, group.values())))
