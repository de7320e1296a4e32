"""What drift would look like if it came out of nothing: shuffled states, and walks of the observed increments."""

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import polars as pl
from scipy import stats

from ditscope.core.identity import derived_seed
from ditscope.core.nulls import draws_for, holm, two_sided
from ditscope.drift.tables import BANDS, CLAIMS, NULLS
from ditscope.embed.files import parts_of, run_starts, unit, unmarked, vectors

CONFIDENCE = 0.95
MOST_RUNS = 100  # of an embedder and network, sampled where there are more: draws cost runs x states x numbers
MOST_INCREMENTS = 4000  # of these runs, sampled where there are more: their inner products are held
FEWEST_STATES = 3  # after the first one: fewer have no order to speak of
Curves = np.ndarray  # distances (runs, states) to each run's first state; NaN after a run's end


def null_tests(states: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The claims of drift beside their nulls, for each embedder and network: tests, and bands of the curves.

    `ordered`: is the cosine distance to the first state ordered in time? Statistic: Spearman's correlation of distance
    and time, mean over runs. Null: the later states of each run shuffled. `walk`: is the Euclidean distance larger or
    smaller than that of a walk? Statistic: mean distance over runs and states from the second step on. Null: runs whose
    increments are drawn from those of all runs of the network, with replacement. Bands hold 95 % of the null's median
    over runs at each state. Runs of one prompt may go together, as copies do, so prompts are what is drawn: their runs
    are shuffled alike, and take their increments together from those that another prompt's runs took at one time.
    p-values are two-sided and corrected (Holm 1979) for all tests of the table; the draws are 999, or 40 for each test
    if that is more. Runs with gaps are left out, and so are all but 100 at random. Loops are as in `states`.
    O(draws x runs x states x min(states, d)).
    """
    groups = list(parts_of(states, "embedder", "network"))
    draws = draws_for(len(groups) * len(CLAIMS))
    tests, bands = [], []
    for part, claim in product(groups, CLAIMS):
        group = {"embedder": part["embedder"][0], "network": part["network"][0], "claim": claim}
        rng = np.random.default_rng(derived_seed("drift null", *group.values()))
        runs, prompts, numbers = whole_runs(part, rng)
        record = dict.fromkeys(unmarked(NULLS)) | group | {"runs": len(runs), "prompts": len(set(prompts))}
        if not runs:
            tests.append(record | {"reason": f"no run without gaps has {FEWEST_STATES} states after its first"})
            continue
        observed, draw, statistic = (ordered if claim == "ordered" else walked)(runs, prompts, rng)
        drawn = [(statistic(curves), middle(curves)) for curves in (draw() for _ in range(draws))]
        null, curves = (np.array(values) for values in zip(*drawn, strict=True))
        measured = statistic(observed)
        ends = np.quantile(null, [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2])
        record |= {"draws": draws, "statistic": measured, "p_value": two_sided(measured, null)}
        tests.append(record | dict(zip(("null_low", "null_median", "null_high"), map(float, ends), strict=True)))
        low, median, high = np.quantile(curves, [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2], axis=0)
        bands.append(
            pl.DataFrame(
                {"sequence_number": numbers, "runs": (~np.isnan(observed)).sum(axis=0), "observed": middle(observed),
                 "low": low, "median": median, "high": high}
            ).with_columns(pl.lit(value).alias(name) for name, value in group.items())
        )  # fmt: skip
    table = pl.DataFrame(tests, schema=unmarked(NULLS)).with_columns(holm(pl.col("p_value")).alias("p_holm"))
    empty = pl.DataFrame(schema=unmarked(BANDS))
    return table, pl.concat([empty, *(band.select(empty.columns).cast(empty.schema) for band in bands)])


def whole_runs(states: pl.DataFrame, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """Vectors (states, d) of the runs without gaps, at most MOST_RUNS, and the number of each one's prompt.

    Last the sequence numbers after the longest run's first.
    """
    x, starts, positions = vectors(states), run_starts(states), states["position"].to_numpy()
    spans = [
        (a, b) for a, b in pairwise(starts)
        if b - a > FEWEST_STATES and (np.diff(positions[a:b]) == 1).all()
    ]  # fmt: skip
    if len(spans) > MOST_RUNS:
        spans = [spans[i] for i in np.sort(rng.choice(len(spans), MOST_RUNS, replace=False))]
    a, b = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
    prompts = states["prompt_id"].rank("dense").to_numpy()[[start for start, _ in spans]]
    runs = [x[a:b].astype(np.float64) for a, b in spans]
    return runs, np.unique(prompts, return_inverse=True)[1], states["sequence_number"][a + 1 : b].to_list()


def ordered(
    runs: list[np.ndarray], prompts: np.ndarray, rng: np.random.Generator
) -> tuple[Curves, Callable[[], Curves], Callable[[Curves], float]]:
    """Cosine distances, a draw of them in shuffled order, and the mean correlation of distance and time."""
    curves = together([(np.linalg.norm(u[1:] - u[0], axis=1) ** 2) / 2 for u in map(unit, runs)])
    there = ~np.isnan(curves)

    def draw() -> Curves:
        keys = rng.random((prompts.max() + 1, curves.shape[1]))[prompts]  # of a prompt's runs the same
        return np.take_along_axis(curves, np.argsort(np.where(there, keys, 2), axis=1), axis=1)  # missing ones last

    time = centred(np.where(there, np.arange(curves.shape[1], dtype=float), np.nan))
    return curves, draw, lambda drawn: float((time * centred(stats.rankdata(drawn, axis=1, nan_policy="omit"))).sum(
        axis=1).mean())  # fmt: skip


def walked(
    runs: list[np.ndarray], prompts: np.ndarray, rng: np.random.Generator
) -> tuple[Curves, Callable[[], Curves], Callable[[Curves], float]]:
    """Euclidean distances, a draw of those of walks of the observed increments, and their mean from the second on."""
    curves = together([np.linalg.norm(x[1:] - x[0], axis=1) for x in runs])
    times = np.arange(curves.shape[1])
    if curves.size > MOST_INCREMENTS:  # the same ones of all runs
        times = rng.choice(times, max(1, MOST_INCREMENTS // len(runs)), replace=False)
    number = np.full((len(runs), len(times)), -1)  # of a run's increment at a time, among those that are held
    held = ~np.isnan(curves[:, times])
    number[held] = np.arange(held.sum())
    sources, places = np.nonzero(held)
    increments = np.stack([runs[i][times[t] + 1] - runs[i][times[t]] for i, t in zip(sources, places, strict=True)])
    rank, partners = companions(prompts)
    there = ~np.isnan(curves)
    products = increments @ increments.T if curves.shape[1] < increments.shape[1] else None

    def draw() -> Curves:
        lot = rng.integers(len(increments), size=(prompts.max() + 1, curves.shape[1]))[prompts]
        chosen = number[partners[sources[lot], rank[:, None]], places[lot]]
        chosen = np.where(chosen < 0, lot, chosen)  # the companion ended before
        return np.where(there, walk_distances(chosen, increments, products), np.nan)

    return curves, draw, lambda drawn: float(np.nanmean(np.nanmean(drawn[:, 1:], axis=1)))


def companions(prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place (runs,) of each run among its prompt's, and by (run, k) the k-th after it there, in a circle."""
    members = [np.flatnonzero(prompts == prompt) for prompt in range(prompts.max() + 1)]
    rank, partners = np.zeros(len(prompts), int), np.zeros((len(prompts), max(map(len, members))), int)
    for of_prompt in members:
        rank[of_prompt] = np.arange(len(of_prompt))
        partners[of_prompt] = of_prompt[
            (np.arange(len(of_prompt))[:, None] + np.arange(partners.shape[1])) % len(of_prompt)
        ]
    return rank, partners


def walk_distances(chosen: np.ndarray, increments: np.ndarray, products: np.ndarray | None) -> np.ndarray:
    """How far walks (runs, steps) of the `chosen` increments (n, d) are from their start, after each step.

    From the increments' inner `products` (n, n), if given: fewer operations where a run has fewer steps than d.
    """
    if products is None:
        return np.linalg.norm(increments[chosen].cumsum(axis=1), axis=2)
    pairs = products[chosen[:, :, None], chosen[:, None, :]]
    added = 2 * np.tril(pairs, -1).sum(axis=2) + np.diagonal(pairs, axis1=1, axis2=2)
    return np.sqrt(added.cumsum(axis=1).clip(min=0))


def together(rows: list[np.ndarray]) -> Curves:
    """Rows of unequal length as one array, NaN after the end of each."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def centred(x: np.ndarray) -> np.ndarray:
    """Rows about their means, at length 1; zero where a row does not vary or has no value."""
    x = np.nan_to_num(x - np.nanmean(x, axis=1, keepdims=True))
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 1e-9)


def middle(curves: Curves) -> np.ndarray:
    """Median over the runs that are there at each state."""
    values, n = np.sort(curves, axis=0), (~np.isnan(curves)).sum(axis=0)  # NaN is sorted last
    column = np.arange(curves.shape[1])
    return (values[(n - 1) // 2, column] + values[n // 2, column]) / 2
