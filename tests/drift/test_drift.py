"""Drift against closed forms and brute force: distances, controls, gaps, loops, similarity."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from scipy.spatial import distance

from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.drift.figures import drift_quantiles
from ditscope.drift.settings import Drift
from ditscope.drift.stage import STEPS, distances, drift
from ditscope.embed.files import read_states
from loose_tables import write_loosely
from state_tables import MODALITY, random_states, write_states

TABLES = ["drift", "nulls", "bands", "similarity", "autoregression", "normality"]


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
    measured = distances(x, np.repeat(x[:1], len(x), axis=0))
    # Rounding of the points themselves is about 1e-16 of the radius, so an angle is known to about that much.
    np.testing.assert_allclose(measured["angle_rad"], theta, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(measured["cosine_distance"], 2 * np.sin(theta / 2) ** 2, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(measured["euclidean"], 2 * radius * np.sin(theta / 2), rtol=1e-6, atol=1e-15)


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
    measured = distances(a, b)
    np.testing.assert_array_equal(measured["euclidean"], [3, 0, 5, 0, 0])
    np.testing.assert_array_equal(measured["cosine_distance"], [2, 0, np.nan, np.nan, 0])
    np.testing.assert_allclose(measured["angle_rad"], [np.pi, 0, np.nan, np.nan, 0])


def test_distances_of_all_angles_equal_closed_forms():
    """Also of nearly opposite directions, whose sum is small."""
    theta = np.concatenate([np.linspace(0, np.pi, 181), np.pi - np.logspace(-6, -1, 50)])
    b = 3 * np.stack([np.cos(theta), np.sin(theta)], axis=1)
    measured = distances(np.tile([[2.0, 0.0]], (len(theta), 1)), b)
    np.testing.assert_allclose(measured["angle_rad"], theta, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(measured["cosine_distance"], 2 * np.sin(theta / 2) ** 2, rtol=1e-12, atol=1e-30)


def test_states_keep_their_vectors_whatever_the_order_and_length(tmp_path):
    """Embedders of other lengths, tables in any order, rows in any order, one vector that is left out."""
    rng = np.random.default_rng(7)
    lengths = {"text-a": 3, "text-b": 5, "image": 2}
    vectors = {key: rng.normal(size=(6, lengths[key[0]])).astype(np.float32) for key in random_states(length=2)}
    vectors["text-b", "net-a", "p1/0"][3] = 0
    embeddings, trajectories = write_states(tmp_path, vectors, MODALITY)
    for path in embeddings[1:]:
        write_loosely(pl.read_parquet(path).sample(fraction=1, shuffle=True, seed=1), path, "embeddings")
    states = read_states(embeddings[::-1], trajectories)
    assert states.height == 6 * len(vectors) - 1
    for row in states.iter_rows(named=True):
        start = -1 if row["modality"] == "text" else 0
        x = vectors[row["embedder"], row["network"], row["run_id"].split(":")[1]]
        assert row["vector"] == x[(row["sequence_number"] - start) // 2].tolist()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_vector_without_a_direction_is_named_and_leaves_a_gap(tmp_path, value, caplog):
    x = np.random.default_rng(0).normal(size=(6, 4))
    whole = run_drift(tmp_path / "whole", {("text-a", "net-a", "p0/0"): x}, MODALITY)
    x[3] = value
    holed = run_drift(tmp_path / "holed", {("text-a", "net-a", "p0/0"): x}, MODALITY)
    assert "1 zero, NaN or Inf vectors are left out" in caplog.text
    assert "text-a, net-a, run net-a:p0/0, sequence number 5" in caplog.text
    before, after = (tables["drift"].filter(control="observed") for tables in (whole, holed))
    assert after["sequence_number"].to_list() == [-1, 1, 3, 7, 9]
    steps = before.filter(pl.col("sequence_number") != 5).with_columns(
        pl.when(pl.col("sequence_number") != 7).then(pl.col(STEPS))
    )
    assert after.equals(steps)
    similar = holed["similarity"].row(0, named=True)
    assert similar["shared_positions"] == 4 and similar["aligned_cosine"] == pytest.approx(1)


def test_steps_and_pairs_do_not_cross_a_gap(tmp_path):
    x = np.random.default_rng(1).normal(size=(12, 4)).cumsum(axis=0)
    lost = {("image", "net-a", "p0/0", number) for number in range(9, 16)}
    paths = write_states(tmp_path, {("image", "net-a", "p0/0"): x}, MODALITY, without=lost)
    drift(*paths, tmp_path / "drift")
    table = pl.read_parquet(tmp_path / "drift/drift.parquet").filter(control="observed")
    assert table["sequence_number"].to_list() == [0, 2, 4, 6, 8, 16, 18, 20, 22]
    assert table["step_euclidean"].is_null().to_list() == [True, *[False] * 4, True, *[False] * 3]
    pairs = pl.read_parquet(tmp_path / "drift/autoregression.parquet").filter(control="observed")["pairs"]
    assert pairs.to_list() == [3 + 2] * 3


@pytest.mark.parametrize(("embedder", "number"), [("text-a", -1), ("image", 0)])
@pytest.mark.parametrize("how", ["missing", "zero"])
def test_a_run_without_its_first_state_is_refused(tmp_path, embedder, number, how):
    x = np.eye(4)
    lost = {(embedder, "net-a", "p0/0", number)} if how == "missing" else set()
    x[0] *= how == "missing"
    paths = write_states(tmp_path, {(embedder, "net-a", "p0/0"): x}, MODALITY, without=lost)
    with pytest.raises(InputError, match=r"net-a, run net-a:p0/0, .* prompt's or first image's is missing or zero"):
        drift(*paths, tmp_path / "drift")


def test_loops_are_continued_to_the_end(tmp_path):
    """A run whose captions go p a b c b, and so on b c b c; its images 0 1 2 1, and so on 2 1 2 1."""
    rng = np.random.default_rng(2)
    text, image = rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    cut = rng.normal(size=(5, 5))
    vectors = {
        ("text-a", "net-a", "p0/0"): text[[0, 1, 2, 3, 2]],
        ("image", "net-a", "p0/0"): image[[0, 1, 2, 1]],
        ("text-a", "net-a", "p1/0"): cut,
    }
    paths = write_states(tmp_path, vectors, MODALITY, loops={("net-a", "p0/0"): 4})
    drift(*paths, tmp_path / "drift", max_length=14)
    table = pl.read_parquet(tmp_path / "drift/drift.parquet").filter(control="observed")
    for embedder, order, states, first in (
        ("text-a", [0, 1, 2, 3, 2, 3, 2, 3], text, -1),
        ("image", [0, 1, 2, 1, 2, 1, 2], image, 0),
    ):
        run = table.filter(embedder=embedder, prompt_id="p0")
        x = states[order].astype(np.float32).astype(float)
        assert run["sequence_number"].to_list() == list(range(first, 14, 2))
        assert run["continued"].to_list() == [n > 7 for n in range(first, 14, 2)]
        np.testing.assert_allclose(run["euclidean"], np.linalg.norm(x - x[0], axis=1), rtol=1e-6)
        np.testing.assert_allclose(run["step_euclidean"][1:], np.linalg.norm(np.diff(x, axis=0), axis=1), rtol=1e-6)
    cut_short = table.filter(prompt_id="p1")
    assert cut_short["sequence_number"].to_list() == [-1, 1, 3, 5, 7] and not cut_short["continued"].any()
    pairs = pl.read_parquet(tmp_path / "drift/autoregression.parquet")["pairs"]
    assert pairs.max() == 3 + 3, "what follows for ever from a loop is no evidence of more"


def test_a_walk_that_does_not_come_back_with_its_run_is_not_continued(tmp_path):
    """The run comes back to its first caption; the control of no meaning is elsewhere by then."""
    x = np.random.default_rng(4).normal(size=(4, 3))
    vectors = {("text-a", "net-a", "p0/0"): x[[0, 1, 2, 1]], ("text-b", "net-a", "p0/0"): x.cumsum(axis=0)}
    paths = write_states(tmp_path, vectors, MODALITY, loops={("net-a", "p0/0"): 4})
    drift(*paths, tmp_path / "drift", max_length=20)
    table = pl.read_parquet(tmp_path / "drift/drift.parquet").filter(control="observed")
    assert dict(table.group_by("embedder").len().rows()) == {"text-a": 11, "text-b": 4}


def test_runs_that_converge_stay_in_the_curves(tmp_path):
    """Ten of 16 runs stop at their second caption: the median at the end is theirs, at every point of 16 runs."""
    rng = np.random.default_rng(3)
    walks = {("text-a", "net-a", f"p{i}/0"): 1 + rng.normal(size=(8, 6)).cumsum(axis=0) for i in range(16)}
    for i in range(10):
        walks["text-a", "net-a", f"p{i}/0"][1:3] = walks["text-a", "net-a", f"p{i}/0"][0] + 0.01
        walks["text-a", "net-a", f"p{i}/0"] = walks["text-a", "net-a", f"p{i}/0"][:3]
    paths = write_states(tmp_path, walks, MODALITY, loops={("net-a", f"p{i}/0"): 2 for i in range(10)})
    drift(*paths, tmp_path / "drift")
    curves = drift_quantiles({"drift": [tmp_path / "drift/drift.parquet"]}).filter(control="observed")
    assert curves["runs"].to_list() == [16] * 8
    assert curves["q50"][1:].max() < 1e-3 < curves["q75"][-1]


def test_drift_equals_brute_force_within_each_run(tmp_path):
    vectors = random_states()
    table = run_drift(tmp_path, vectors, MODALITY)["drift"].filter(control="observed")
    assert table.height == sum(map(len, vectors.values()))
    for (embedder, network, run), x in vectors.items():
        of_run = table.filter(embedder=embedder, network=network, run_id=f"{network}:{run}")
        x = x.astype(np.float32).astype(np.float64)
        assert of_run["sequence_number"][0] == (-1 if MODALITY[embedder] == "text" else 0)
        assert set(of_run["seed"]) == {int(run[-1])}
        for prefix, others in (("", [x[0]] * len(x)), ("step_", [x[0], *x[:-1]])):
            first = 1 if prefix else 0
            euclidean = [distance.euclidean(a, b) for a, b in zip(x, others, strict=True)]
            cosine = [distance.cosine(a, b) for a, b in zip(x, others, strict=True)]
            np.testing.assert_allclose(of_run[f"{prefix}euclidean"][first:], euclidean[first:], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(of_run[f"{prefix}cosine_distance"][first:], cosine[first:], atol=1e-12)
            angle = np.arccos(1 - np.array(cosine))
            np.testing.assert_allclose(of_run[f"{prefix}angle_rad"][first:], angle[first:], atol=1e-7)


def test_a_shuffle_permutes_the_later_states_of_its_own_run(tmp_path):
    vectors = random_states(length=12)
    table = run_drift(tmp_path, vectors, MODALITY, shuffles=2)["drift"]
    orders = {}
    for (embedder, network, run_id), of_run in table.partition_by(
        ["embedder", "network", "run_id"], as_dict=True
    ).items():
        x = vectors[embedder, network, run_id.split(":")[1]].astype(np.float32).astype(np.float64)
        observed = of_run.filter(shuffle=0)
        for number in (1, 2):
            shuffled = of_run.filter(shuffle=number)
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


def test_of_many_runs_those_of_some_prompts_are_compared(tmp_path):
    vectors = random_states(length=3)  # three prompts of two networks and two seeds
    whole = run_drift(tmp_path / "whole", vectors, MODALITY)["similarity"]
    some = run_drift(tmp_path / "some", vectors, MODALITY, max_runs=6)["similarity"]
    assert some.height == 3 * 6 * 7 // 2
    runs = some.filter(run_id_a=pl.col("run_id_b")).group_by("embedder").agg(pl.col("prompt_id_a", "run_id_a").sort())
    assert runs["run_id_a"].n_unique() == 1, "the same runs of every embedder"
    counts = runs["prompt_id_a"][0].value_counts()["count"]
    assert sorted(counts) == [2, 4], "one prompt with all of its runs, of another as many as there is room for"
    chosen = some["run_id_a"].unique()
    kept = whole.filter(pl.col("run_id_a").is_in(chosen.to_list()) & pl.col("run_id_b").is_in(chosen.to_list()))
    assert some.equals(kept)


def test_a_stage_is_the_same_in_any_order_of_its_inputs(tmp_path):
    embeddings, trajectories = write_states(tmp_path, random_states(), MODALITY)
    drift(embeddings, trajectories, tmp_path / "a")
    drift(embeddings[::-1], trajectories[::-1], tmp_path / "b")
    for name in TABLES:
        assert (tmp_path / f"a/{name}.parquet").read_bytes() == (tmp_path / f"b/{name}.parquet").read_bytes()
    assert set(read_table(tmp_path / "a/autoregression.parquet", "drift.autoregression")["measure"]) == set(STEPS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.with_columns(pl.lit([1.0, float("nan")], pl.List(pl.Float32)).alias("vector")), "no embeddings"),
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
    write_loosely(table, path, "embeddings")
    with pytest.raises(InputError, match=message) as refusal:
        drift([path], trajectories, tmp_path / "drift")
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "drift").exists()


def test_trajectories_that_are_given_twice_are_named(tmp_path):
    paths, trajectories = write_states(tmp_path, {("text-a", "net-a", "p0/0"): np.eye(4)}, MODALITY)
    with pytest.raises(InputError, match=r"the row of network net-a, run_id .* is there more than once") as refusal:
        drift(paths, trajectories * 2, tmp_path / "drift")
    assert str(refusal.value).startswith(str(trajectories[0]))
