"""Lag-1 autoregression of the steps of trajectories, with intervals from simulations of series of the same shape."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import polars as pl
from scipy import stats

from ditscope.drift.tables import AUTOREGRESSION, AUTOREGRESSION_RUNS
from ditscope.embed.files import CYCLE, RUN, unmarked

CONFIDENCE = 0.95
DRAWS = 1999  # simulated studies per coefficient
EXACT = 64  # runs up to which whole studies are drawn; the sums of more are normal
POOL = 40_000  # simulated runs from which those sums are known
COEFFICIENTS = np.tanh(np.linspace(-2.3, 3.0, 28))  # -0.98 to 0.995, denser towards the ends
LONG = 50  # steps from which a run has an autoregression of its own
SEED = 0
CHUNK = 4096  # runs simulated at once: their sums stay in the processor's cache
REASONS = ("no run has two pairs of consecutive steps", "the steps do not vary")

CELL = ["embedder", "network", "control"]
SUMS = ["places", "sxy", "sxx", "size"]
Places = tuple[int, ...]  # of a run's pairs (x[t], x[t+1]): t, from 0 at its first one


def autoregression(table: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """Coefficient b of x[t+1] = a + b x[t] + e in each embedder, network, control and measure of a drift table.

    `least_squares` has an intercept a per run, so that runs may differ in their means; short runs push it down by about
    (1 + b) / T (Nickell 1981). `coefficient` is the b for which such estimates have their median there, `low` to `high`
    those for which it is within the central 95 % (Andrews 1993, by simulation): of as many independent normal series,
    as long, with the same gaps, equal variances, and begun in their stationary state. A bound of -1 or 1 is where
    stationary series end. Pairs across gaps are none. The table is sorted by its key. O(n), and some seconds for each
    distinct set of run lengths.
    """
    rows = steps_of(table.filter(pl.col("shuffle") <= 1), measures)  # shuffles of a run are no more runs
    cells = rows.select(CELL).unique(maintain_order=True).sort(CELL).rows()
    sums = {measure: run_sums(rows, measure).partition_by(CELL, as_dict=True) for measure in measures}
    records = []
    for cell, measure in product(cells, measures):
        if (runs := sums[measure].get(cell)) is None:
            records.append((*cell, measure, 0, 0, *invert(Counter(), 0, 0, 0)))
            continue
        patterns = Counter(tuple(places) for places in runs["places"].to_list() if len(places) > 1)
        fixed = runs.select(pl.col("sxy", "sxx", "size").sum()).row(0)
        pairs = int(runs["places"].list.len().sum())
        records.append((*cell, measure, runs.height, pairs, *invert(patterns, *fixed)))
    return pl.DataFrame(records, schema=unmarked(AUTOREGRESSION) | {"measure": pl.Enum(measures)}, orient="row")


def autoregression_runs(table: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """The coefficient of each observed run by itself, as in `autoregression`: from LONG steps on, else the reason."""
    rows = steps_of(table.filter(pl.col("control").cast(pl.String) == "observed"), measures)
    runs = rows.group_by("series", maintain_order=True).agg(pl.col(RUN).first(), pl.col(measures).count())
    sums = {measure: {row[0]: row[1:] for row in run_sums(rows, measure).select("series", *SUMS).rows()}
            for measure in measures}  # fmt: skip
    records = []
    for row in runs.rows():
        series, run, counts = row[0], row[1 : 1 + len(RUN)], row[1 + len(RUN) :]
        for measure, count in zip(measures, counts, strict=True):
            places, *fixed = sums[measure].get(series, ((), 0.0, 0.0, 0.0))
            if count < LONG:
                result = (*[None] * 5, f"{count} steps, the autoregression of one run needs {LONG}")
            else:
                result = invert(Counter([tuple(places)] if len(places) > 1 else []), *fixed)
            records.append((*run, measure, count, len(places), *result))
    schema = unmarked(AUTOREGRESSION_RUNS) | {"measure": pl.Enum(measures)}
    return pl.DataFrame(records, schema=schema, orient="row").sort(*RUN, "measure")


def steps_of(table: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """The measures of all but first states, which measure nothing, with RUN, CELL and the number of their `series`."""
    series = pl.struct("embedder", "network", "run_id", "control", "shuffle").rle_id().alias("series")
    rows = table.select(*RUN, "control", series, "sequence_number", *measures)
    return rows.filter((pl.col("series") == pl.col("series").shift()).fill_null(False))


def run_sums(rows: pl.DataFrame, measure: str) -> pl.DataFrame:
    """Of each series that has pairs: places of the pairs (x, y), and sums of xy and xx about its means and of squares.

    `rows` have CELL, series, sequence_number and the measure, series by series.
    """
    x, y, number, series = pl.col("x"), pl.col("y"), pl.col("sequence_number"), pl.col("series")
    rows = rows.select(*CELL, "series", "sequence_number", pl.col(measure).alias("x")).drop_nulls("x")
    follows = (series == series.shift(-1)) & (number.shift(-1) - number == CYCLE)
    pairs = rows.with_columns(pl.when(follows).then(x.shift(-1)).alias("y")).drop_nulls("y")
    about_x, about_y = x - x.mean(), y - y.mean()
    return pairs.group_by("series", maintain_order=True).agg(
        pl.col(CELL).first(),
        places=(number - number.first()) // CYCLE,
        sxy=(about_x * about_y).sum(),
        sxx=(about_x * about_x).sum(),
        size=(x * x).sum(),
    )


def invert(patterns: Counter[Places], sxy: float, sxx: float, size: float) -> tuple:
    """Least-squares coefficient, the coefficient, low, high and width, and the reason where there are none."""
    if not patterns:
        return (*[None] * 5, REASONS[0])
    if sxx <= 1e-24 * size:  # series of one value repeated leave rounding errors for a variance
        return (*[None] * 5, REASONS[1])
    least_squares = sxy / sxx
    high, middle, low = (
        float(np.interp(least_squares, curve, COEFFICIENTS, left=-1, right=1))
        for curve in quantiles(tuple(sorted(patterns.items())))
    )
    return least_squares, middle, low, high, high - low, None


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
