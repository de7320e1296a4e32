"""Autoregression against least squares and series of known coefficient; normality of runs against scipy."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from scipy import stats

from ditscope.drift.autoregression import COEFFICIENTS, EXACT, LONG, autoregression, autoregression_runs, quantiles
from ditscope.drift.series import anderson_darling, holm, normality


def drift_like(series, network=None):
    """A drift table of one measure `x` from arrays by run; slot -1 is the first state, which measures nothing."""
    rows = [
        {"embedder": "e", "network": network(run) if network else "n", "run_id": run, "control": "observed",
         "shuffle": 0, "sequence_number": 2 * t + 1, "x": value}
        for run, x in series.items() for t, value in enumerate([0.0, *x], start=-1)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"x": pl.Float64})


def known(rng, b, runs, length, off=0.0):
    """Normal series (runs, length) of coefficient b, begun `off` standard deviations from their mean."""
    x = np.empty((runs, length))
    x[:, 0] = (rng.standard_normal(runs) + off) / np.sqrt(1 - b**2)
    for t in range(1, length):
        x[:, t] = b * x[:, t - 1] + rng.standard_normal(runs)
    return x


def least_squares(x):
    """The coefficient with an intercept per series, of (..., runs, length)."""
    a, c = x[..., :-1], x[..., 1:]
    a, c = a - a.mean(axis=-1, keepdims=True), c - c.mean(axis=-1, keepdims=True)
    return (a * c).sum(axis=(-1, -2)) / (a * a).sum(axis=(-1, -2))


def bounds(estimates, runs, length):
    """(low, median, high) for least-squares estimates of equally long series."""
    curves = quantiles(((tuple(range(length - 1)), runs),))
    high, middle, low = (np.interp(estimates, curve, COEFFICIENTS, left=-1, right=1) for curve in curves)
    return low, middle, high


def test_least_squares_has_an_intercept_per_run_and_no_pairs_across_gaps():
    rng = np.random.default_rng(1)
    series = {f"r{i}": 10 * i + rng.normal(size=5 + i) for i in range(6)}
    table = drift_like(series)
    table = table.filter(~((pl.col("run_id") == "r5") & (pl.col("sequence_number") == 9)))
    row = autoregression(table, ["x"]).row(0, named=True)
    pairs = [(run, t) for run, x in series.items() for t in range(len(x) - 1) if run != "r5" or t not in (3, 4)]
    design = np.array([[series[run][t], *(run == other for other in series)] for run, t in pairs])
    beta = np.linalg.lstsq(design, np.array([series[run][t + 1] for run, t in pairs]))[0]
    assert (row["runs"], row["pairs"], row["reason"]) == (6, len(pairs), None)
    assert row["least_squares"] == pytest.approx(beta[0])
    assert row["low"] < row["coefficient"] < row["high"] and row["width"] == pytest.approx(row["high"] - row["low"])


def test_the_coefficient_does_not_depend_on_the_means_or_the_scale_of_runs():
    rng = np.random.default_rng(2)
    x = known(rng, 0.5, 8, 12)
    one = autoregression(drift_like({f"r{i}": s for i, s in enumerate(x)}), ["x"])
    other = autoregression(drift_like({f"r{i}": 100 * i + 7 * s for i, s in enumerate(x)}), ["x"])
    for column in ("coefficient", "low", "high"):
        assert one[column][0] == pytest.approx(other[column][0])


@pytest.mark.parametrize(("b", "runs", "length"), [(0.0, 8, 6), (0.5, 16, 6), (0.9, 16, 6), (0.9, 16, 12)])
def test_the_interval_covers_a_known_coefficient(b, runs, length):
    studies = 1000
    x = known(np.random.default_rng(3), b, studies * runs, length).reshape(studies, runs, length)
    low, middle, high = bounds(least_squares(x), runs, length)
    covered = ((low <= b) & (b <= high)).mean()
    assert abs(covered - 0.95) < 0.025  # 3 standard errors of 1000 studies, and the error of the simulated quantiles
    assert abs((middle < b).mean() - 0.5) < 0.06, "the estimate is above the truth as often as below"
    assert np.mean(least_squares(x)) < b - 0.1, "least squares is not"


def test_sums_of_many_runs_are_as_normal_as_they_are_taken_to_be():
    exact, normal = (quantiles(((tuple(range(11)), runs),)) for runs in (EXACT, EXACT + 1))
    assert np.abs(exact - normal).max() < 0.02
    mixed = quantiles(((tuple(range(11)), 50), (tuple(range(8)), 50)))
    assert (np.diff(mixed, axis=1) >= 0).all() and (np.diff(mixed, axis=0) > 0).all()


def test_runs_of_unequal_length_and_with_gaps_are_covered_too():
    rng, studies, b, runs = np.random.default_rng(4), 60, 0.6, 10
    estimates = []
    for _ in range(studies):
        series = {f"r{i}": x[: 6 + i] for i, x in enumerate(known(rng, b, runs, 15))}
        table = drift_like(series).filter(pl.col("sequence_number") != 7)
        estimates.append(autoregression(table, ["x"]).row(0, named=True))
    covered = np.mean([row["low"] <= b <= row["high"] for row in estimates])
    assert covered >= 0.87  # 95 %, with three standard errors of 60 studies
    assert abs(np.median([row["coefficient"] for row in estimates]) - b) < 0.1
    assert np.mean([row["least_squares"] for row in estimates]) < b - 0.1


def test_autoregression_says_why_there_is_none():
    rng = np.random.default_rng(3)

    def row(series):
        return autoregression(drift_like(series), ["x"]).row(0, named=True)

    single = row({"a": rng.normal(size=10)})
    assert single["runs"] == 1 and single["low"] < single["coefficient"] < single["high"]
    for constant in ([0.1] * 7, [0.0] * 7):
        estimate = row({"a": constant, "b": constant})
        assert estimate["coefficient"] is None and estimate["low"] is None and "do not vary" in estimate["reason"]
    short = row({"a": [0.1, 0.2], "b": [0.3, 0.1]})
    assert (short["pairs"], short["coefficient"]) == (2, None) and "two pairs" in short["reason"]
    assert row({"a": [0.1], "b": [0.3]})["pairs"] == 0


# Normality ------------------------------------------------------------------------------------------------------------


def test_each_run_is_tested_by_itself_as_scipy_does():
    rng = np.random.default_rng(4)
    series = {"normal": rng.normal(size=150), "skewed": rng.exponential(size=90)}
    table = normality(drift_like(series), ["x"])
    assert table.height == 2 * 3
    for name, test in (("shapiro-wilk", stats.shapiro), ("dagostino-k2", stats.normaltest)):
        for run, values in series.items():
            row = table.filter(test=name, run_id=run).row(0, named=True)
            assert row["n"] == len(values)
            assert (row["statistic"], row["p_value"]) == pytest.approx(tuple(test(values)))
            assert (row["p_holm"] < 1e-3) == (run == "skewed")
            assert row["standard_deviation"] == pytest.approx(np.std(values, ddof=1))
            assert row["skewness"] == pytest.approx(stats.skew(values))


def test_anderson_and_darling_s_statistic_and_p_value():
    rng = np.random.default_rng(5)
    x = rng.normal(size=40)
    statistic, _ = anderson_darling(x)
    assert statistic == pytest.approx(stats.anderson(x, "norm", method="interpolate").statistic)
    for n in (8, 30, 200):
        p = np.array([anderson_darling(rng.normal(size=n))[1] for _ in range(2000)])
        for rate in (0.01, 0.05, 0.1):
            assert abs((p < rate).mean() - rate) < 3.5 * np.sqrt(rate / len(p))
        assert stats.kstest(p, "uniform").statistic < 0.1
    assert anderson_darling(rng.exponential(size=3000))[1] == 0


def test_runs_of_other_means_are_normal_and_one_in_twenty_studies_errs():
    rng, studies, rejected = np.random.default_rng(6), 60, Counter()
    series = {f"{s}-{i}": 5 * i + rng.normal(size=30) for s in range(studies) for i in range(8)}
    table = normality(drift_like(series, lambda run: run.split("-")[0]), ["x"])
    for (name, _), part in table.partition_by("test", "network", as_dict=True).items():
        rejected[name] += (part["p_holm"] < 0.05).any()
    assert all(count / studies < 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies) for count in rejected.values())
    pooled = stats.shapiro(np.concatenate([series[f"0-{i}"] for i in range(8)])).pvalue
    assert pooled < 1e-3, "of all runs together, equally normal, the test says that they are not"


def test_holm_s_correction():
    p = [0.01, None, 0.04, 0.03, 0.005]
    corrected = pl.DataFrame({"p": p}).select(holm(pl.col("p"))).to_series().to_list()
    assert corrected == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06), pytest.approx(0.02)]


@pytest.mark.parametrize(
    ("values", "reasons"),
    [
        ([1.0, 2.0], ["needs 3", "needs 20", "needs 8"]),
        ([0.1] * 30, ["equal", "equal", "equal"]),
        (np.linspace(0, 1, 5001) ** 2, ["up to 5000", None, None]),
        ([None] * 4, ["0 values", "0 values", "0 values"]),
    ],
)
def test_normality_says_why_there_is_no_test(values, reasons):
    table = normality(drift_like({"a": values}), ["x"])
    assert table["test"].to_list() == ["shapiro-wilk", "dagostino-k2", "anderson-darling"]
    for row, reason in zip(table.iter_rows(named=True), reasons, strict=True):
        assert (row["p_value"] is None) == (row["p_holm"] is None) == bool(reason)
        assert row["reason"] is None if reason is None else reason in row["reason"]


def test_long_runs_have_an_autoregression_of_their_own_and_short_ones_a_reason():
    rng = np.random.default_rng(11)
    series = {f"r{i}": 5 * i + x for i, x in enumerate(known(rng, 0.6, 40, 80))} | {"short": known(rng, 0.6, 1, 49)[0]}
    table = autoregression_runs(drift_like(series), ["x"])
    short = table.row(by_predicate=pl.col("run_id") == "short", named=True)
    assert (short["steps"], short["coefficient"]) == (49, None) and LONG == 50
    assert short["reason"] == "49 steps, the autoregression of one run needs 50"
    long = table.filter(pl.col("run_id") != "short")
    assert long["steps"].unique().to_list() == [80] and long["pairs"].unique().to_list() == [79]
    for row in long.iter_rows(named=True):
        assert row["least_squares"] == pytest.approx(least_squares(series[row["run_id"]][None]))
    held = long.filter(pl.col("low") <= 0.6, pl.col("high") >= 0.6).height
    assert held >= 0.95 * 40 - 3 * np.sqrt(0.95 * 0.05 * 40)
    assert long["coefficient"].mean() == pytest.approx(0.6, abs=0.06)


def test_a_long_run_that_does_not_vary_has_a_reason():
    table = autoregression_runs(drift_like({"r": np.ones(60)}), ["x"])
    assert table["reason"].to_list() == ["the steps do not vary"]
