"""Semantic jumps: steps at which a run's states change more than they would in random order."""

from itertools import pairwise

import numpy as np
import polars as pl

from ditscope.core.identity import derived_seed
from ditscope.drift.groups import MOST_RUNS
from ditscope.drift.settings import Drift
from ditscope.drift.tables import JUMPS
from ditscope.embed.files import RUN, parts_of, run_starts, unmarked, vectors

DRAWS = 999  # shuffles of each run
CHUNK = 100  # shuffles that are held at once
LEAST = 3  # times `jump_states` states: fewer have too few orders


def jumps(states: pl.DataFrame, settings: Drift = Drift()) -> pl.DataFrame:
    """The table `drift.jumps`: the jumps of each run's generated states, or its largest step where it has none.

    The size of a step is the Euclidean distance of the means of the k = `jump_states` states before and after it. It is
    held against the mean distance of states that follow each other: a run that stays at two levels comes, in random
    order, as far from three states to the next three as in its own, but then its other steps are as large. The
    threshold is exceeded in a share `jump_false_alarms` of runs whose states are in random order (shuffles within the
    run, the largest step of each); p-values are corrected for the steps of the run in the same way. Of steps less than
    k apart the largest counts. A run that moves steadily is not in random order and exceeds the threshold, too:
    `p_walk` is the share of walks of the run's increments (but those of the jumps) that come as far, anywhere. Runs
    with gaps are not tested, nor are all but 100 at random of an embedder and network: their row has the reason.
    O(draws x states x min(states, d)) per run.
    """
    rows = []
    for part in parts_of(states, "embedder", "network"):
        x, starts, positions = vectors(part), run_starts(part), part["position"].to_numpy()
        spans = [(b - int((positions[a:b] >= 0).sum()), b) for a, b in pairwise(starts)]  # the prompt comes first
        left_out = untested(part, spans, settings)
        for (a, b), start, why in zip(spans, starts, left_out, strict=False):
            run = part.select(*RUN, "prompt_id", "seed").row(start, named=True) | {"states": b - a}
            rng = np.random.default_rng(derived_seed("jumps", run["network"], run["run_id"]))
            found = [{"jump": False, "reason": why}] if why else jumps_of(x[a:b], settings, rng)
            for number, jump in enumerate(found):
                place = jump.pop("place", None)
                at = {} if place is None else part.select("position", "sequence_number").row(a + place, named=True)
                rows.append(dict.fromkeys(JUMPS.columns) | run | {"number": number} | at | jump)
    return pl.DataFrame(rows, schema=unmarked(JUMPS)).sort(*RUN, "number")


def untested(part: pl.DataFrame, spans: list[tuple[int, int]], settings: Drift) -> list[str]:
    """Why the runs of an embedder and network, rows `spans` of `part`, are not tested; empty where they are."""
    positions, least = part["position"].to_numpy(), LEAST * settings.jump_states
    few = f"states, jumps of {settings.jump_states} before and after need {least}"
    why = ["" if (np.diff(positions[a:b]) == 1).all() else "states are missing" for a, b in spans]
    why = [reason or (f"{b - a} {few}" if b - a < least else "") for reason, (a, b) in zip(why, spans, strict=True)]
    whole = [i for i, reason in enumerate(why) if not reason]
    if len(whole) > MOST_RUNS:
        rng = np.random.default_rng(derived_seed("runs with jumps", *part.select("embedder", "network").row(0)))
        for i in rng.permutation(whole)[MOST_RUNS:]:
            why[i] = f"not drawn: {MOST_RUNS} of {len(whole)} runs are tested"
    return why


def jumps_of(x: np.ndarray, settings: Drift, rng: np.random.Generator) -> list[dict]:
    """The jumps of a run's states (n, d), n >= LEAST k: place of the first state after, size, threshold, p-values."""
    k = settings.jump_states
    scale = np.abs(x).max()
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    if np.abs(x).max() <= 1e-6 * scale:
        return [{"jump": False, "reason": "degenerate: all states are equal"}]
    x = np.asarray(np.linalg.qr(x.T, mode="r")).T  # the same distances in as many dimensions as there are states
    sizes = step_sizes(x, k)
    chunks = [min(CHUNK, DRAWS - start) for start in range(0, DRAWS, CHUNK)]
    null = mean_step(x) * np.concatenate([
        largest(x[rng.permuted(np.tile(np.arange(len(x)), (many, 1)), axis=1)], k) for many in chunks
    ])  # fmt: skip
    rank = int(np.ceil((1 - settings.jump_false_alarms) * (DRAWS + 1)))
    threshold = float(np.sort(null)[min(rank, DRAWS) - 1])
    slack = 1e-9 * sizes.max()  # equal sizes differ by rounding
    places = peaks(sizes, k)
    kept = [i for i in places if sizes[i] > threshold + slack]
    chosen = sorted(kept or places[:1])
    others = np.delete(np.diff(x, axis=0), [i + k - 1 for i in chosen], axis=0)
    length = np.linalg.norm(others, axis=1).mean()
    walks = length * np.concatenate([
        largest(others[rng.integers(len(others), size=(many, len(x) - 1))].cumsum(axis=1), k) for many in chunks
    ])  # fmt: skip
    return [
        {"place": int(i) + k, "size": float(sizes[i]), "threshold": threshold, "jump": bool(kept),
         "p_value": share(null, sizes[i] - slack), "p_walk": share(walks, sizes[i] - slack)}
        for i in chosen
    ]  # fmt: skip


def share(null: np.ndarray, least: float) -> float:
    """Share of draws that are at least so large, the observed one among them."""
    return float(1 + (null >= least).sum()) / (len(null) + 1)


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """The largest step of each run (..., n, d), in mean distances of states that follow each other; 0 where none is."""
    length = mean_step(x)
    return np.divide(step_sizes(x, k).max(axis=-1), length, out=np.zeros_like(length), where=length > 0)


def step_sizes(x: np.ndarray, k: int) -> np.ndarray:
    """Distances of the means of k states before and after each step of (..., n, d): n - 2k + 1, from state k on."""
    total = np.concatenate([np.zeros_like(x[..., :1, :]), x.cumsum(axis=-2)], axis=-2)
    sums = total[..., k:, :] - total[..., :-k, :]
    return np.linalg.norm(sums[..., k:, :] - sums[..., :-k, :], axis=-1) / k


def mean_step(x: np.ndarray) -> np.ndarray:
    """Mean distance of states that follow each other (..., n, d)."""
    return np.linalg.norm(np.diff(x, axis=-2), axis=-1).mean(axis=-1)


def peaks(sizes: np.ndarray, k: int) -> list[int]:
    """Steps by size, each of which is the largest of those less than k from it that were not taken yet."""
    left, taken = sizes.astype(float).copy(), []
    while (left > -np.inf).any():
        i = int(np.argmax(left))
        taken.append(i)
        left[max(0, i - k + 1) : i + k] = -np.inf
    return taken
