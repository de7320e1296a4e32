"""Lag-1 autoregression of the steps of trajectories, with intervals from simulations of series of the same shape."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import polars as pl
from scipy import stats

from ditscope.drift.series import GROUP, RUN_SERIES, SERIES, long_series
from ditscope.drift.tables import AUTOREGRESSION, AUTOREGRESSION_RUNS
from ditscope.embed.files import CYCLE, unmarked

CONFIDENCE = 0.95
DRAWS = 1999  # simulated studies per coefficient
EXACT = 64  # runs up to which whole studies are drawn; the sums of more are normal
POOL = 40_000  # simulated runs from which those sums are known
COEFFICIENTS = np.tanh(np.linspace(-2.3, 3.0, 28))  # -0.98 to 0.995, denser towards the ends
LONG = 50  # steps from which a run has an autoregression of its own
SEED = 0
CHUNK = 4096  # runs simulated at once: their sums stay in the processor's cache
REASONS = ("no run has two pairs of consecutive steps", "the steps do not vary")

Places = tuple[int, ...]  # of a run's pairs (x[t], x[t+1]): t, from 0 at its first one


def autoregression(table: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """Coefficient b of x[t+1] = a + b x[t] + e in each embedder, network, control and measure of a drift table.

    `least_squares` has an intercept a per run, so that runs may differ in their means; short runs push it down by about
    (1 + b) / T (Nickell 1981). `coefficient` is the b for which such estimates have their median there, `low` to `high`
    those for which it is within the central 95 % (Andrews 1993, by simulation): of as many normal series, as long, with
    the same gaps, equal variances, and begun in their stationary state. A bound of -1 or 1 is where stationary series
    end. Pairs across gaps are none. O(n log n), and some seconds for each distinct set of run lengths.
    """
    groups = long_series(table, measures).select(GROUP).unique(maintain_order=True)
    runs = run_sums(table, measures)
    records = []
    parts = runs.partition_by(GROUP, as_dict=True)
    for group in groups.rows():
        mine = parts.get(group, runs.clear())
        patterns = Counter(tuple(places) for places in mine["places"].to_list() if len(places) > 1)
        fixed = mine.select(pl.col("sxy", "sxx", "size").sum()).row(0)
        records.append((*group, mine.height, sum(map(len, mine["places"])), *invert(patterns, *fixed)))
    schema = unmarked(AUTOREGRESSION) | {"measure": groups.schema["measure"]}
    return pl.DataFrame(records, schema=schema, orient="row")


def autoregression_runs(table: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """The coefficient of each observed run by itself, as in `autoregression`; of LONG steps or more, else the reason."""
    observed = table.filter(pl.col("control").cast(pl.String) == "observed")
    steps = long_series(observed, measures).group_by(RUN_SERIES, maintain_order=True).agg(pl.col("value").count())
    sums = {row[:4]: row[4:] for row in run_sums(observed, measures)
            .select(*RUN_SERIES, "places", "sxy", "sxx", "size").rows()}  # fmt: skip
    records = []
    for *run, count in steps.rows():
        places, *fixed = sums.get(tuple(run), ((), 0.0, 0.0, 0.0))
        found = (*[None] * 5, f"{count} steps, the autoregression of one run needs {LONG}")
        if count >= LONG:
            found = invert(Counter([tuple(places)] if len(places) > 1 else []), *fixed)
        records.append((*run, count, len(places), *found))
    schema = unmarked(AUTOREGRESSION_RUNS) | {"measure": steps.schema["measure"]}
    return pl.DataFrame(records, schema=schema, orient="row")


def run_sums(table: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """Of each series the places of its pairs, and of these the sums of xy, xx about their means, and of squares."""
    value, number = pl.col("value"), pl.col("sequence_number")
    after = (number.shift(-1) - number == CYCLE) & value.shift(-1).is_not_null()
    rows = long_series(table, measures).drop_nulls("value").with_columns(
        pl.when(after).then(value.shift(-1)).over(SERIES).alias("next")
    )  # fmt: skip
    x, y = value - value.mean(), pl.col("next") - pl.col("next").mean()
    return rows.drop_nulls("next").group_by(SERIES, maintain_order=True).agg(
        places=(number - number.first()) // CYCLE,
        sxy=(x * y).sum(),
        sxx=(x * x).sum(),
        size=(value**2).sum(),
    )  # fmt: skip


def invert(patterns: Counter[Places], sxy: float, sxx: float, size: float) -> tuple:
    """Least-squares coefficient, the coefficient, low, high and width, and the reason where there are none."""
    if not patterns:
        return (*[None] * 5, REASONS[0])
    if sxx <= 1e-24 * size:  # series of one value repeated leave rounding errors for a variance
        return (*[None] * 5, REASONS[1])
    found = sxy / sxx
    high, middle, low = (
        float(np.interp(found, curve, COEFFICIENTS, left=-1, right=1))
        for curve in quantiles(tuple(sorted(patterns.items())))
    )
    return found, middle, low, high, high - low, None


@cache
def quantiles(patterns: tuple[tuple[Places, int], ...]) -> np.ndarray:
    """Quantiles (3, coefficients) of the least-squares estimate: low, median and high, rising with the coefficient.

    `patterns` says how many runs have pairs at which places.
    """
    tail = (1 - CONFIDENCE) / 2
    shares = np.array([tail, 0.5, 1 - tail])
    runs = sum(count for _, count in patterns)
    if runs <= EXACT:
        drawn = sum(simulate(places, DRAWS * count).reshape(2, len(COEFFICIENTS), DRAWS, count).sum(axis=3)
                    for places, count in patterns)  # fmt: skip
        curves = np.quantile(drawn[0] / drawn[1], shares, axis=1)
    else:
        pools = [(count, simulate(places, max(500, POOL // len(patterns)))) for places, count in patterns]
        top, bottom = sum(count * pool.mean(axis=2) for count, pool in pools)
        middle = top / bottom
        variance = sum(count * (pool[0] - middle[:, None] * pool[1]).var(axis=1) for count, pool in pools)
        curves = middle + stats.norm.ppf(shares)[:, None] * np.sqrt(variance) / bottom
    return np.maximum.accumulate(curves, axis=1)


def simulate(places: Places, runs: int) -> np.ndarray:
    """Sums of xy and of xx about the run's means (2, coefficients, runs) of stationary normal series, as of `places`.

    All coefficients share one noise, so that the estimates rise smoothly with them.
    """
    rng = np.random.default_rng(SEED)
    paired = set(places)
    b = COEFFICIENTS[:, None]
    parts = []
    for start in range(0, runs, CHUNK):
        many = min(CHUNK, runs - start)
        x = rng.standard_normal(many) / np.sqrt(1 - b**2)
        sx, sy, sxx, sxy = np.zeros((4, len(COEFFICIENTS), many))
        for t in range(places[-1] + 1):
            y = b * x + rng.standard_normal(many)
            if t in paired:
                sx += x
                sy += y
                sxx += x * x
                sxy += x * y
            x = y
        parts.append(np.stack([sxy - sx * sy / len(places), sxx - sx * sx / len(places)]))
    return np.concatenate(parts, axis=2)
