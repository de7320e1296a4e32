"""Series in long tables, and tests of whether they are normal."""

from collections.abc import Sequence

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
    records = []
    observed = table.filter(pl.col("control").cast(pl.String) == "observed")
    rows = long_series(observed, measures)
    groups = rows.group_by(RUN_SERIES, maintain_order=True).agg(pl.col("value").drop_nulls())
    for *group, values in groups.rows():
        x = np.asarray(values, np.float64)
        same = len(x) > 0 and np.ptp(x) <= 1e-12 * np.abs(x).max()
        shape = len(x) > 1 and not same
        summary = {
            "n": len(x),
            "mean": float(x.mean()) if len(x) else None,
            "standard_deviation": float(x.std(ddof=1)) if len(x) > 1 else None,
            "skewness": float(stats.skew(x)) if shape else None,
            "excess_kurtosis": float(stats.kurtosis(x)) if shape else None,
        }
        for name, (test, least, most) in TESTS.items():
            reason = None
            if len(x) < least:
                reason = f"{len(x)} values, the test needs {least}"
            elif most and len(x) > most:
                reason = f"{len(x)} values, the test's p-value holds up to {most}"
            elif same:
                reason = "all values are equal"
            statistic, p_value = (None, None) if reason else map(float, test(x))
            result = {"test": name} | summary | {"statistic": statistic, "p_value": p_value, "reason": reason}
            records.append(dict(zip(RUN_SERIES, group, strict=True)) | result)
    schema = unmarked(NORMALITY) | {"measure": pl.Enum(measures)}
    family = ["embedder", "network", "measure", "test"]
    tests = pl.DataFrame([{"p_holm": None} | record for record in records], schema=schema)
    return tests.with_columns(holm(pl.col("p_value")).over(family).alias("p_holm"))


def anderson_darling(x: np.ndarray) -> tuple[float, float]:
    """Anderson & Darling's statistic A^2 of normality, mean and variance fitted, and its p-value.

    D'Agostino & Stephens, "Goodness-of-fit techniques", 1986, table 4.9, for n >= 8.
    """
    n = len(x)
    z = np.sort((x - x.mean()) / x.std(ddof=1))
    odd = 2 * np.arange(1, n + 1) - 1
    statistic = -n - np.mean(odd * (stats.norm.logcdf(z) + stats.norm.logsf(z[::-1])))
    a = statistic * (1 + 0.75 / n + 2.25 / n**2)
    if a >= 0.6:
        p = np.exp(1.2937 - 5.709 * a + 0.0186 * a**2)
    elif a > 0.34:
        p = np.exp(0.9177 - 4.279 * a - 1.38 * a**2)
    elif a > 0.2:
        p = 1 - np.exp(-8.318 + 42.796 * a - 59.938 * a**2)
    else:
        p = 1 - np.exp(-13.436 + 101.14 * a - 223.73 * a**2)
    return float(statistic), float(p if a < 13 else 0)  # the polynomial turns back up far beyond its range


TESTS = {  # the test, and the fewest and most values for which its p-value holds
    "shapiro-wilk": (stats.shapiro, 3, SHAPIRO_MOST),
    "dagostino-k2": (stats.normaltest, 20, None),
    "anderson-darling": (anderson_darling, 8, None),
}
