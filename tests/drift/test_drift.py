"""Drift against closed forms and brute force: distances, controls, similarity, autoregression, normality."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from scipy import stats
from scipy.spatial import distance

from ditscope.core.errors import InputError
from ditscope.core.tables import read_table, write_table
from ditscope.drift.series import autoregression, normality
from ditscope.drift.settings import Drift
from ditscope.drift.stage import DISTANCES, STEPS, distances, drift
from state_tables import MODALITY, random_states, write_states

TABLES = ["drift", "similarity", "autoregression", "normality"]


def run_drift(tmp_path, vectors, modality, **settings):
    paths = write_states(tmp_path, vectors, modality)
    drift(*paths, tmp_path / "drift", Drift(**settings))
    return {name: pl.read_parquet(tmp_path / f"drift/{name}.parquet") for name in TABLES}


@pytest.mark.parametrize("step", [np.pi / 12, 1e-3, 1e-9])
@pytest.mark.parametrize("radius", [1.0, 7.5])
def test_distances_on_a_great_circle(step, radius):
    theta = step * np.arange(13)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0]
    x = radius * np.stack([np.cos(theta), np.sin(theta)], axis=1) @ basis.T
    found = distances(x, np.repeat(x[:1], len(x), axis=0))
    # Rounding of the points themselves is about 1e-16 of the radius, so an angle is known to about that much.
    np.testing.assert_allclose(found["angle_rad"], theta, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(found["cosine_distance"], 2 * np.sin(theta / 2) ** 2, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(found["euclidean"], 2 * radius * np.sin(theta / 2), rtol=1e-6, atol=1e-15)


def test_drift_on_a_great_circle_and_a_straight_line(tmp_path):
    theta = np.pi / 20 * np.arange(11)
    circle = 3 * np.stack([np.cos(theta), np.sin(theta), 0 * theta], axis=1)
    start, step = np.array([1.0, 2.0, 2.0]), np.array([0.0, 3.0, -4.0])
    line = start + np.arange(11)[:, None] * step
    vectors = {("text-a", "net-a", "p0/0"): circle, ("text-a", "net-a", "p1/0"): line}
    table = run_drift(tmp_path, vectors, MODALITY)["drift"].filter(control="observed")
    on_circle, on_line = (table.filter(prompt_id=p) for p in ("p0", "p1"))
    assert on_circle["sequence_number"].to_list() == list(range(-1, 21, 2))
    np.testing.assert_allclose(on_circle["angle_rad"], theta, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(on_circle["cosine_distance"], 1 - np.cos(theta), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(on_circle["euclidean"], 6 * np.sin(theta / 2), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(on_circle["step_angle_rad"][1:], np.pi / 20, rtol=1e-5)
    np.testing.assert_allclose(on_line["euclidean"], 5 * np.arange(11), rtol=1e-6)
    np.testing.assert_allclose(on_line["step_euclidean"][1:], 5, rtol=1e-6)
    k = np.arange(11)
    # start . step = -2, |start| = 3, |step| = 5
    cosine = (9 - 2 * k) / (3 * np.sqrt(9 - 4 * k + 25 * k**2))
    np.testing.assert_allclose(on_line["cosine_distance"], 1 - cosine, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(on_line["angle_rad"], np.arccos(np.clip(cosine, -1, 1)), rtol=1e-5, atol=1e-7)
    assert on_circle["step_euclidean"][0] is None and on_line["step_angle_rad"][0] is None


def test_opposite_equal_and_zero_vectors():
    a = np.array([[1.0, 0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [0.1, 0.2]], np.float32)
    b = np.array([[-2.0, 0], [3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [0.1, 0.2]], np.float32)
    found = distances(a, b)
    np.testing.assert_array_equal(found["euclidean"], [3, 0, 5, 0, 0])
    np.testing.assert_array_equal(found["cosine_distance"], [2, 0, np.nan, np.nan, 0])
    np.testing.assert_allclose(found["angle_rad"], [np.pi, 0, np.nan, np.nan, 0])


def test_zero_vectors_are_null_and_do_not_spread(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 4))
    x[3] = 0
    tables = run_drift(tmp_path, {("text-a", "net-a", "p0/0"): x, ("text-a", "net-a", "p1/0"): x[[0, 1, 2]]}, MODALITY)
    run = tables["drift"].filter(control="observed", prompt_id="p0")
    assert run["cosine_distance"].is_null().to_list() == [False] * 3 + [True] + [False] * 2
    assert run["step_angle_rad"].is_null().to_list() == [True, False, False, True, True, False]
    assert run["euclidean"].null_count() == 0
    assert tables["similarity"]["aligned_cosine"].null_count() == 0


def test_drift_equals_brute_force_within_each_run(tmp_path):
    vectors = random_states()
    table = run_drift(tmp_path, vectors, MODALITY)["drift"].filter(control="observed")
    assert table.height == sum(map(len, vectors.values()))
    for (embedder, network, run), x in vectors.items():
        mine = table.filter(embedder=embedder, network=network, run_id=f"{network}:{run}")
        x = x.astype(np.float32).astype(np.float64)
        assert mine["sequence_number"][0] == (-1 if MODALITY[embedder] == "text" else 0)
        assert set(mine["seed"]) == {int(run[-1])}
        for prefix, others in (("", [x[0]] * len(x)), ("step_", [x[0], *x[:-1]])):
            first = 1 if prefix else 0
            euclidean = [distance.euclidean(a, b) for a, b in zip(x, others, strict=True)]
            cosine = [distance.cosine(a, b) for a, b in zip(x, others, strict=True)]
            np.testing.assert_allclose(mine[f"{prefix}euclidean"][first:], euclidean[first:], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(mine[f"{prefix}cosine_distance"][first:], cosine[first:], atol=1e-12)
            angle = np.arccos(1 - np.array(cosine))
            np.testing.assert_allclose(mine[f"{prefix}angle_rad"][first:], angle[first:], atol=1e-7)


def test_a_shuffle_permutes_the_later_states_of_its_own_run(tmp_path):
    vectors = random_states(length=12)
    table = run_drift(tmp_path, vectors, MODALITY, shuffles=2)["drift"]
    orders = {}
    for (embedder, network, run_id), mine in table.partition_by(
        ["embedder", "network", "run_id"], as_dict=True
    ).items():
        x = vectors[embedder, network, run_id.split(":")[1]].astype(np.float32).astype(np.float64)
        observed = mine.filter(shuffle=0)
        for number in (1, 2):
            shuffled = mine.filter(shuffle=number)
            assert set(shuffled["control"]) == {"shuffled"}
            assert shuffled["sequence_number"].equals(observed["sequence_number"])
            assert shuffled["euclidean"][0] == 0
            order = [observed["euclidean"].to_list().index(value) for value in shuffled["euclidean"]]
            assert sorted(order) == list(range(12)) and order != list(range(12))
            steps = [distance.euclidean(x[a], x[b]) for a, b in pairwise(order)]
            np.testing.assert_allclose(shuffled["step_euclidean"][1:], steps, rtol=1e-9)
            orders[embedder, run_id, number] = order
    assert orders["text-a", "net-a:p0/0", 1] == orders["text-b", "net-a:p0/0", 1]
    assert len({tuple(order) for (embedder, *_), order in orders.items() if embedder == "text-a"}) == 24
    assert run_drift(tmp_path / "none", vectors, MODALITY, shuffles=0)["drift"]["shuffle"].to_list() == [0] * 36 * 12


def test_similarity_equals_brute_force(tmp_path):
    vectors = random_states()
    vectors["text-a", "net-a", "p0/0"] = vectors["text-a", "net-a", "p0/0"][:5]  # a run that ended early
    table = run_drift(tmp_path, vectors, MODALITY)["similarity"]
    assert table.height == 3 * 12 * 13 // 2
    for row in table.iter_rows(named=True):
        first = 1 if MODALITY[row["embedder"]] == "text" else 0
        a, b = (vectors[row["embedder"], row[f"network_{s}"], row[f"run_id_{s}"].split(":")[1]][first:] for s in "ab")
        cosine = 1 - distance.cdist(a, b, "cosine")
        assert row["mean_cosine"] == pytest.approx(cosine.mean(), abs=1e-6)
        assert row["shared_positions"] == min(cosine.shape)
        assert row["aligned_cosine"] == pytest.approx(np.diag(cosine).mean(), abs=1e-6)
        centre = [(x / np.linalg.norm(x, axis=1, keepdims=True)).mean(axis=0) for x in (a, b)]
        assert row["centroid_cosine"] == pytest.approx(1 - distance.cosine(*centre), abs=1e-6)


def drift_like(series, network=None):
    """A drift table of one measure `x` from arrays by run; slot -1 is the first state, which measures nothing."""
    rows = [
        {"embedder": "e", "network": network(run) if network else "n", "run_id": run, "control": "observed",
         "shuffle": 0, "sequence_number": t, "x": value}
        for run, x in series.items() for t, value in enumerate([0.0, *x], start=-1)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"x": pl.Float64})


def test_autoregression_equals_regression_with_a_clustered_sandwich():
    rng = np.random.default_rng(1)
    series = {f"r{i}": i + rng.normal(size=5 + i).cumsum() for i in range(6)}
    table = autoregression(drift_like(series), ["x"])
    x, y = (np.concatenate([s[cut] for s in series.values()]) for cut in (slice(None, -1), slice(1, None)))
    run = np.repeat(np.arange(6), [len(s) - 1 for s in series.values()])
    for estimator, design in (
        ("pooled", np.stack([x, np.ones_like(x)], axis=1)),
        ("within", np.concatenate([x[:, None], np.eye(6)[run]], axis=1)),
    ):
        beta = np.linalg.lstsq(design, y)[0]
        scores = design * (y - design @ beta)[:, None]
        meat = sum(np.outer(s, s) for s in (scores[run == r].sum(axis=0) for r in range(6)))
        bread = np.linalg.inv(design.T @ design)
        error = np.sqrt((bread @ meat @ bread)[0, 0] * 6 / 5 * (len(x) - 1) / (len(x) - 2))
        row = table.row(by_predicate=pl.col("estimator") == estimator, named=True)
        assert (row["runs"], row["pairs"], row["reason"]) == (6, len(x), None)
        assert row["coefficient"] == pytest.approx(beta[0])
        assert row["standard_error"] == pytest.approx(error)
        margin = stats.t.ppf(0.975, 5) * error
        assert (row["low"], row["high"]) == (pytest.approx(beta[0] - margin), pytest.approx(beta[0] + margin))


def test_the_interval_covers_the_coefficient_of_a_known_process():
    rng = np.random.default_rng(2)
    studies, runs, length, b = 150, 20, 40, 0.6
    x = np.zeros((studies, runs, length))
    x[..., 0] = rng.normal(size=(studies, runs)) / np.sqrt(1 - b**2)
    for t in range(1, length):
        x[..., t] = b * x[..., t - 1] + rng.normal(size=(studies, runs))
    series = {f"{s}-{r}": x[s, r] for s in range(studies) for r in range(runs)}
    table = autoregression(drift_like(series, lambda run: run.split("-")[0]), ["x"]).filter(estimator="pooled")
    covered = ((table["low"] <= b) & (table["high"] >= b)).mean()
    assert table.height == studies
    assert abs(table["coefficient"].mean() - b) < 0.01
    assert 0.9 <= covered <= 0.99  # 95 %, with three standard errors of 150 studies


def test_autoregression_says_why_there_is_no_interval():
    rng = np.random.default_rng(3)

    def row(series):
        return autoregression(drift_like(series), ["x"]).row(0, named=True)

    single = row({"a": rng.normal(size=10)})
    assert single["coefficient"] is not None and single["low"] is None and "one run" in single["reason"]
    constant = row({"a": [0.1] * 7, "b": [0.1] * 7})
    assert constant["coefficient"] is None and constant["low"] is None and "does not vary" in constant["reason"]
    short = row({"a": [0.1], "b": [0.3]})
    assert (short["pairs"], short["coefficient"]) == (0, None) and "consecutive" in short["reason"]


def test_normality_is_scipys_and_tells_normal_from_exponential():
    rng = np.random.default_rng(4)
    normal, skewed = rng.normal(size=400), rng.exponential(size=400)
    for values, rejected in ((normal, False), (skewed, True)):
        table = normality(drift_like({"a": values[:150], "b": values[150:]}), ["x"])
        for name, test in (("shapiro-wilk", stats.shapiro), ("dagostino-k2", stats.normaltest)):
            row = table.row(by_predicate=pl.col("test") == name, named=True)
            assert row["n"] == 400
            assert (row["statistic"], row["p_value"]) == pytest.approx(tuple(test(values)))
            assert (row["p_value"] < 1e-3) == rejected
            assert row["standard_deviation"] == pytest.approx(np.std(values, ddof=1))
            assert row["skewness"] == pytest.approx(stats.skew(values))


@pytest.mark.parametrize(
    ("values", "reasons"),
    [
        ([1.0, 2.0], ["needs 3", "needs 20"]),
        ([0.1] * 30, ["equal", "equal"]),
        (np.linspace(0, 1, 5001) ** 2, ["up to 5000", None]),
        ([None] * 4, ["0 values", "0 values"]),
    ],
)
def test_normality_says_why_there_is_no_test(values, reasons):
    table = normality(drift_like({"a": values}), ["x"])
    for row, reason in zip(table.sort("test", descending=True).iter_rows(named=True), reasons, strict=True):
        assert (row["p_value"] is None) == bool(reason)
        assert row["reason"] is None if reason is None else reason in row["reason"]


def test_a_stage_is_the_same_in_any_order_of_its_inputs(tmp_path):
    embeddings, trajectories = write_states(tmp_path, random_states(), MODALITY)
    drift(embeddings, trajectories, tmp_path / "a")
    drift(embeddings[::-1], trajectories[::-1], tmp_path / "b")
    for name in TABLES:
        assert (tmp_path / f"a/{name}.parquet").read_bytes() == (tmp_path / f"b/{name}.parquet").read_bytes()
    assert set(read_table(tmp_path / "a/autoregression.parquet", "drift.autoregression")["measure"]) == {
        *DISTANCES,
        *STEPS,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.with_columns(pl.lit([1.0, float("nan")], pl.List(pl.Float32)).alias("vector")), "NaN or Inf"),
        (lambda e: pl.concat([e, e.head(1)]), "more than once"),
        (lambda e: e.with_columns(pl.lit("other").alias("run_id")), "no row in the trajectories"),
        (
            lambda e: e.with_columns(
                pl.when(pl.col("sequence_number") == 3).then(pl.col("vector").list.head(1)).otherwise("vector")
            ),
            "sequence number 3 differs in length",
        ),
        (lambda e: e.clear(), "no embeddings"),
    ],
)
def test_bad_embeddings_are_refused_by_name(tmp_path, change, message):
    (path,), trajectories = write_states(tmp_path, {("text-a", "net-a", "p0/0"): np.eye(4)}, MODALITY)
    table = change(read_table(path, "embeddings")).cast({"vector": pl.List(pl.Float32)})
    write_table(table, path, "embeddings")
    with pytest.raises(InputError, match=message) as refusal:
        drift([path], trajectories, tmp_path / "drift")
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "drift").exists()


def test_trajectories_that_are_given_twice_are_named(tmp_path):
    paths, trajectories = write_states(tmp_path, {("text-a", "net-a", "p0/0"): np.eye(4)}, MODALITY)
    with pytest.raises(InputError, match=r"the row of network net-a, run_id .* is there more than once") as refusal:
        drift(paths, trajectories * 2, tmp_path / "drift")
    assert str(refusal.value).startswith(str(trajectories[0]))
