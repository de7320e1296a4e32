"""Statistics of series in long tables: lag-1 autoregression with intervals, tests of normality."""

import numpy as np
import polars as pl
from scipy import stats

GROUP = ["embedder", "network", "control", "measure"]
SERIES = [*GROUP, "run_id", "shuffle"]
CONFIDENCE = 0.95
SHAPIRO_MOST = 5000  # beyond it scipy's p-value of the Shapiro-Wilk test is not accurate


def long_series(table: pl.DataFrame, measures: list[str]) -> pl.DataFrame:
    """The columns `measures` of a drift table as rows (measure, value), less first states, which measure nothing."""
    first = pl.col("sequence_number") == pl.col("sequence_number").min().over("embedder", "network", "run_id")
    keys = ["embedder", "network", "control", "run_id", "shuffle"]
    rows = table.filter(~first).unpivot(measures, index=[*keys, "sequence_number"], variable_name="measure")
    order = pl.Enum(measures)
    return rows.with_columns(pl.col("measure").cast(order)).sort(*SERIES, "sequence_number")


def autoregression(table: pl.DataFrame, measures: list[str]) -> pl.DataFrame:
    """Lag-1 coefficient b of x[t+1] = a + b x[t] + e in each embedder, network, control and measure.

    Two least-squares estimators, whose biases have opposite signs: `pooled` has one intercept a (differences between
    runs push b up), `within` one for each run (short runs push b down, by about (1 + b) / T: Nickell 1981). The
    interval takes runs as independent clusters: sandwich variance with the factor G/(G-1) (n-1)/(n-2) for G runs and
    n pairs, Student's t with G - 1 degrees of freedom (Cameron & Miller 2015). Where one cannot be had, `reason` says
    why. O(n log n).
    """
    rows = long_series(table, measures).with_columns(pl.col("value").shift(-1).over(SERIES).alias("next"))
    groups = rows.select(GROUP).unique()
    pairs = rows.drop_nulls(["value", "next"]).rename({"value": "x", "next": "y"})
    return pl.concat(
        [
            fit(pairs, groups, over).select(*GROUP, pl.lit(name).alias("estimator"), pl.exclude(GROUP))
            for name, over in (("pooled", GROUP), ("within", SERIES))
        ]
    ).sort(*GROUP, "estimator")


def fit(pairs: pl.DataFrame, groups: pl.DataFrame, centre: list[str]) -> pl.DataFrame:
    """The slope of y on x in each of `groups`, after x and y are centred over the columns `centre`.

    Groups keep the order of their rows throughout: sums of floats are then the same in every run.
    """
    x, y = pl.col("x"), pl.col("y")
    centred = pairs.with_columns((v - v.mean().over(centre)).alias(v.meta.output_name()) for v in (x, y))
    # Series of one value repeated leave rounding errors for a variance: measured against the values' own size.
    spread = pairs.group_by(GROUP, maintain_order=True).agg(scale=(x**2).sum())
    sums = centred.group_by(GROUP, maintain_order=True).agg(
        runs=pl.col("run_id").n_unique().cast(pl.Int64),
        pairs=pl.len().cast(pl.Int64),
        sxx=(x**2).sum(),
        sxy=(x * y).sum(),
    )
    slopes = sums.join(spread, on=GROUP).with_columns(
        coefficient=pl.when(pl.col("sxx") > 1e-24 * pl.col("scale")).then(pl.col("sxy") / pl.col("sxx"))
    )
    scores = (
        centred.join(slopes, on=GROUP)
        .group_by(*GROUP, "run_id", maintain_order=True)
        .agg(score=(x * (y - pl.col("coefficient") * x)).sum())
        .group_by(GROUP, maintain_order=True)
        .agg(meat=(pl.col("score") ** 2).sum())
    )
    g, n = pl.col("runs"), pl.col("pairs")
    fitted = groups.join(slopes, on=GROUP, how="left").join(scores, on=GROUP, how="left")
    fitted = fitted.with_columns(pl.col("runs", "pairs").fill_null(0)).with_columns(
        standard_error=pl.when((g > 1) & (n > 2)).then(
            (g / (g - 1) * (n - 1) / (n - 2) * pl.col("meat")).sqrt() / pl.col("sxx")
        )
    )
    freedom = fitted["runs"].to_numpy() - 1
    t = pl.Series(stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(freedom, 1)))
    margin = t * pl.col("standard_error")
    b = pl.col("coefficient")
    reason = (
        pl.when(n == 0).then(pl.lit("no two consecutive states"))
        .when(b.is_null()).then(pl.lit("the series does not vary"))
        .when(g < 2).then(pl.lit("one run: no interval"))
        .when(n < 3).then(pl.lit("fewer than three pairs: no interval"))
    )  # fmt: skip
    error = pl.when(b.is_not_null()).then(pl.col("standard_error"))
    return fitted.with_columns(standard_error=error, low=b - margin, high=b + margin, reason=reason).select(
        *GROUP, "runs", "pairs", "coefficient", "standard_error", "low", "high", "reason"
    )


def normality(table: pl.DataFrame, measures: list[str]) -> pl.DataFrame:
    """Shapiro-Wilk and D'Agostino-Pearson K^2 tests of `measures` in each embedder, network and control.

    Both suppose independent values; the steps of one run are not quite that, so a p-value is a guide. O(n log n).
    """
    records = []
    groups = long_series(table, measures).group_by(GROUP, maintain_order=True).agg(pl.col("value").drop_nulls())
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
        for name, test, least, most in (
            ("shapiro-wilk", stats.shapiro, 3, SHAPIRO_MOST),
            ("dagostino-k2", stats.normaltest, 20, None),
        ):
            reason = None
            if len(x) < least:
                reason = f"{len(x)} values, the test needs {least}"
            elif most and len(x) > most:
                reason = f"{len(x)} values, the test's p-value holds up to {most}"
            elif same:
                reason = "all values are equal"
            statistic, p_value = (None, None) if reason else map(float, test(x))
            records.append(
                dict(zip(GROUP, group, strict=True))
                | {"test": name}
                | summary
                | {"statistic": statistic, "p_value": p_value, "reason": reason}
            )
    schema = groups.select(GROUP).schema | {
        "test": pl.String, "n": pl.Int64, "mean": pl.Float64, "standard_deviation": pl.Float64,
        "skewness": pl.Float64, "excess_kurtosis": pl.Float64, "statistic": pl.Float64, "p_value": pl.Float64,
        "reason": pl.String,
    }  # fmt: skip
    return pl.DataFrame(records, schema=schema)
