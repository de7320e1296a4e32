"""Series in long tables, and tests of whether they are normal."""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from scipy import stats

from ditscope.core.nulls import holm
from ditscope.drift.tables import NORMALITY
from ditscope.embed.files import unmarked

GROUP = ["embedder", "network", "control", "measure"]
SERIES = [*GROUP, "run_id", "shuffle"]
RUN_SERIES = ["embedder", "network", "run_id", "measure"]
SHAPIRO_MOST = 5000  # beyond it scipy's p-value of the Shapiro-Wilk test is not accurate


def long_series(table: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """The columns `measures` of a drift table as rows (measure, value), less first states, which measure nothing."""
    first = pl.col("sequence_number") == pl.col("sequence_number").min().over("embedder", "network", "run_id")
    keys = ["embedder", "network", "control", "run_id", "shuffle"]
    rows = table.filter(~first).unpivot(measures, index=[*keys, "sequence_number"], variable_name="measure")
    order = pl.Enum(measures)
    return rows.with_columns(pl.col("measure").cast(order)).sort(*SERIES, "sequence_number")


def normality(table: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """Are the observed `measures` of each run normal? Tests of Shapiro-Wilk, D'Agostino-Pearson and Anderson-Darling.

    Each run is tested by itself: runs differ in their means, and together are not normal though each is. `p_holm` is
    corrected for the number of runs of the embedder and network (Holm 1979): below 0.05 the run is not normal, unless
    one in twenty of such studies errs somewhere. The p-value of Anderson & Darling is that of Stephens 1986 for a mean
    and variance that are fitted. All suppose independent values, which the steps of one run are not quite. O(n log n).
    """
    observed = table.filter(pl.col("control").cast(pl.String) == "observed")
    rows = long_series(observed, measures)
    series = rows.group_by(RUN_SERIES, maintain_order=True).agg(pl.col("value").drop_nulls()).with_row_index("series")
    by_length = series.with_columns(pl.col("value").list.len().alias("n")).partition_by("n")
    parts = [tests_of(part, name) for part in by_length for name in TESTS]
    schema = unmarked(NORMALITY) | {"measure": pl.Enum(measures)}
    if not parts:
        return pl.DataFrame(schema=schema)
    family = ["embedder", "network", "measure", "test"]
    tests = pl.concat(parts).sort("series", pl.col("test").cast(pl.Enum(list(TESTS))))
    return tests.with_columns(holm(pl.col("p_value")).over(family).alias("p_holm")).select(list(schema)).cast(schema)


def tests_of(series: pl.DataFrame, name: str) -> pl.DataFrame:
    """One test of each of some series of equal length (RUN_SERIES, `value`), and the moments of their values."""
    test, least, most = TESTS[name]
    x = np.array(series["value"].to_list(), np.float64).reshape(series.height, -1)
    n = x.shape[1]
    nothing = np.full(series.height, np.nan)
    same = np.ptp(x, axis=1) <= 1e-12 * np.abs(x).max(axis=1) if n else nothing == 0
    varied = np.where(same[:, None], np.nan, x) if n > 1 else x[:, :0]
    statistic, p_value = nothing.copy(), nothing.copy()
    fits = n >= least and not (most and n > most)
    if fits and not same.all():
        statistic[~same], p_value[~same] = test(x[~same])
    if n < least:
        reason = f"{n} values, the test needs {least}"
    elif not fits:
        reason = f"{n} values, the test's p-value holds up to {most}"
    else:
        reason = "all values are equal"
    columns = {
        "mean": x.mean(axis=1) if n else nothing,
        "standard_deviation": x.std(axis=1, ddof=1) if n > 1 else nothing,
        "skewness": stats.skew(varied, axis=1) if n > 1 else nothing,
        "excess_kurtosis": stats.kurtosis(varied, axis=1) if n > 1 else nothing,
        "statistic": statistic,
        "p_value": p_value,
    }
    return series.drop("value").with_columns(
        pl.lit(name).alias("test"),
        pl.lit(n, pl.Int64).alias("n"),
        *(pl.Series(column, values).fill_nan(None) for column, values in columns.items()),
        pl.Series("reason", [reason if none else None for none in same | (not fits)], pl.String),
    )


def anderson_darling(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Anderson & Darling's statistics A^2 of normality, mean and variance fitted, and their p-values.

    Of the series along the last axis of `x` (..., n). D'Agostino & Stephens, "Goodness-of-fit techniques", 1986, table
    4.9, for n >= 8.
    """
    n = x.shape[-1]
    z = np.sort((x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, ddof=1, keepdims=True), axis=-1)
    odd = 2 * np.arange(1, n + 1) - 1
    statistic = -n - np.mean(odd * (stats.norm.logcdf(z) + stats.norm.logsf(z[..., ::-1])), axis=-1)
    a = statistic * (1 + 0.75 / n + 2.25 / n**2)
    near = np.minimum(a, 13)  # the polynomial turns back up far beyond its range
    p = np.select(
        [a >= 13, a >= 0.6, a > 0.34, a > 0.2],
        [
            np.zeros_like(near),
            np.exp(1.2937 - 5.709 * near + 0.0186 * near**2),
            np.exp(0.9177 - 4.279 * near - 1.38 * near**2),
            1 - np.exp(-8.318 + 42.796 * near - 59.938 * near**2),
        ],
        1 - np.exp(-13.436 + 101.14 * near - 223.73 * near**2),
    )
    return statistic, p


def shapiro_wilk(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shapiro & Wilk's statistics of normality and their p-values, of series (series, n); scipy takes one at a time."""
    statistic, p = np.array([stats.shapiro(row) for row in x]).T
    return statistic, p


# The test of series (series, n), and the fewest and most values for which its p-value holds.
TESTS: dict[str, tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], int, int | None]] = {
    "shapiro-wilk": (shapiro_wilk, 3, SHAPIRO_MOST),
    "dagostino-k2": (lambda x: stats.normaltest(x, axis=1), 20, None),
    "anderson-darling": (anderson_darling, 8, None),
}
