"""Clusters against known blobs; label sequences against itertools and plain loops; agreement against scikit-learn."""

from collections import Counter
from itertools import groupby, pairwise

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score

from ditscope.cluster import sequences
from ditscope.cluster.agreement import agreement
from ditscope.cluster.dwell import dwell_times
from ditscope.cluster.settings import Cluster
from ditscope.cluster.stage import by_size, cluster, cluster_labels, map_states, medoids, merge_close
from ditscope.core.errors import InputError
from ditscope.embed.files import read_states, unit
from state_tables import MODALITY, random_states, write_states

TABLES = [
    "agreement",
    "clusters",
    "dwell_times",
    "label_phases",
    "longest_runs",
    "map",
    "medoids",
    "outliers",
    "returns",
    "run_lengths",
    "stability",
    "transitions",
]  # fmt: skip


def blobs(sizes, d=24, spread=0.02, seed=0):
    """Unit vectors around orthogonal directions, shuffled, and the number of each one's direction."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return unit(np.eye(d)[truth] + spread * rng.normal(size=(len(truth), d))), truth


def labelled(*labels, network="n", embedder="e", modality="text"):
    """A table `clusters` of runs r0, r1, ... with the given labels, of which the stage's other columns follow."""
    rows = [
        {
            "embedder": embedder,
            "modality": modality,
            "network": network,
            "run_id": f"{network}-r{run}",
            "prompt_id": f"p{run}",
            "seed": 0,
            "sequence_number": 2 * i + 1,
            "position": i,
            "label": label,
            "reason": None if label is not None else "too few",
        }
        for run, run_labels in enumerate(labels)
        for i, label in enumerate(run_labels)
    ]
    return pl.DataFrame(rows, schema_overrides={"label": pl.Int64, "reason": pl.String})


def random_labels(seed=0, runs=7, most=30):
    rng = np.random.default_rng(seed)
    return [rng.integers(-1, 3, size=rng.integers(1, most)).tolist() for _ in range(runs)]


def test_hdbscan_finds_blobs_and_outliers():
    u, truth = blobs([40, 25, 60])
    far = unit(-u[:5] - np.eye(24)[:3].sum(axis=0))  # further from every blob than blobs are from each other
    labels, reason = cluster_labels(np.concatenate([u, far]), Cluster(min_cluster_size=10))
    assert reason is None
    assert adjusted_rand_score(truth, labels[:-5]) == 1
    assert [np.sum(labels == label) for label in range(3)] == [60, 40, 25]
    assert (labels[-5:] == -1).all()


def test_clusters_closer_than_epsilon_are_one():
    d, rng = 12, np.random.default_rng(4)
    # Two places 0.3 apart and two at right angles to them: 3 clusters at epsilon 0.4, 4 at epsilon 0.
    places = unit(np.stack([np.eye(d)[0], np.eye(d)[0] + 0.3 * np.eye(d)[1], np.eye(d)[2], np.eye(d)[3]]))
    truth = np.repeat(np.arange(4), 30)
    u = unit(places[truth] + 0.01 * rng.normal(size=(120, d)))
    settings = {"min_cluster_size": 5}
    assert adjusted_rand_score(truth, cluster_labels(u, Cluster(epsilon=0.0, **settings))[0]) == 1
    assert adjusted_rand_score(np.maximum(truth, 1), cluster_labels(u, Cluster(epsilon=0.4, **settings))[0]) == 1


def test_merging_replaces_clusters_within_a_component():
    labels = np.array([0, 0, 1, 1, -1, 2, 2, 2, 3, 3, -1])
    components = np.array([5, 5, 5, 5, 5, 1, 1, -1, 2, 3, -1])
    merged = merge_close(labels, components)
    assert len(set(merged[:5])) == 1 and merged[0] in (0, 1)
    assert merged[5:].tolist() == labels[5:].tolist()


def test_random_walks_with_repeats_are_clustered(tmp_path):
    vectors = {key: np.round(x) for key, x in random_states(length=40).items()}
    labels = run_cluster(tmp_path, vectors)["clusters"]["label"]
    assert labels.null_count() == 0 and labels.n_unique() > 2


def test_a_sample_labels_the_rest_as_a_full_clustering_does():
    u, truth = blobs([300, 200, 100])
    for most in (0, 120):
        labels, _ = cluster_labels(u, Cluster(min_cluster_size=5, max_points=most))
        assert adjusted_rand_score(truth, labels) == 1
        assert [np.sum(labels == label) for label in range(3)] == [300, 200, 100]


def test_a_map_of_a_sample_says_of_the_others_that_they_are_not_in_it(tmp_path):
    vectors = {("text-a", "net-a", f"p{i}/0"): x for i, x in enumerate(np.random.default_rng(3).normal(size=(9, 8, 5)))}
    tables = run_cluster(tmp_path, vectors, max_map_points=20)
    table = tables["map"]
    assert table.height == 9 * 7 and table["x"].count() == table["y"].count() == 20
    assert table["x"].is_null().equals(table["reason"].is_not_null())
    assert set(table["reason"].drop_nulls()) == {"not in the sample of 20 states that the map is of"}


def test_equal_states_are_one_cluster_unless_that_is_ruled_out():
    u = np.tile(np.eye(4)[:1], (10, 1))
    assert cluster_labels(u)[0].tolist() == [0] * 10
    assert cluster_labels(u, Cluster(allow_single_cluster=False))[0].tolist() == [-1] * 10


def test_labels_do_not_depend_on_a_rotation_or_a_scale_of_the_space():
    u, _ = blobs([20, 30], d=6, spread=0.3)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    settings = Cluster(min_cluster_size=5)
    assert adjusted_rand_score(cluster_labels(u, settings)[0], cluster_labels(unit(7 * u @ rotation), settings)[0]) == 1


def test_labels_are_numbered_by_size_then_by_first_row():
    assert by_size(np.array([7, 7, 3, 5, 5, -1, 3, 3, 9, 9])).tolist() == [1, 1, 0, 2, 2, -1, 0, 0, 3, 3]
    assert by_size(np.array([-1, -1])).tolist() == [-1, -1]


def test_a_medoid_has_the_least_sum_of_cosine_distances():
    u, truth = blobs([12, 9, 7], spread=0.5)
    labels = np.where(np.arange(len(u)) % 6 == 5, -1, truth)
    rows = medoids(u, labels)
    for i, label in enumerate(labels):
        if label == -1:
            assert rows[i] == -1
            continue
        members = np.flatnonzero(labels == label)
        totals = [sum(1 - u[m] @ u[k] for k in members) for m in members]
        assert rows[i] == members[int(np.argmin(totals))]
    assert medoids(u[[0, 0, 0, 1, 1]], np.array([0, 0, 0, 1, 1])).tolist() == [0, 0, 0, 3, 3]


@pytest.mark.parametrize("drop", [False, True])
def test_run_lengths_equal_itertools(drop):
    labels = random_labels()
    table = sequences.run_lengths(labelled(*labels), drop)
    for run, run_labels in enumerate(labels):
        kept = [(i, label) for i, label in enumerate(run_labels) if not (drop and label == -1)]
        expected = [(label, len(list(group))) for label, group in groupby(label for _, label in kept)]
        mine = table.filter(run_id=f"n-r{run}")
        assert list(zip(mine["label"], mine["length"], strict=True)) == expected
        starts = [kept[0][0]] if kept else []
        starts += [b[0] for a, b in pairwise(kept) if a[1] != b[1]]
        assert mine["start_position"].to_list() == starts
        assert mine["start_sequence_number"].to_list() == [2 * i + 1 for i in starts]


def test_an_outlier_breaks_a_run_unless_outliers_are_dropped():
    table = labelled([0, 0, -1, 0, 0, 0])
    assert sequences.run_lengths(table)["length"].to_list() == [2, 1, 3]
    assert sequences.run_lengths(table, True)["length"].to_list() == [5]


def test_longest_runs_from_start_and_anytime():
    table = sequences.longest_runs(
        sequences.run_lengths(labelled([2, 2, 1, 1, 1], [-1, 0, 0, 1, 1], [-1, -1], [1, 1, 1, 1], [0]))
    )
    rows = {
        (row["scope"], row["run_id"]): (row["label"], row["length"], row["start_sequence_number"], row["rank"])
        for row in table.iter_rows(named=True)
    }
    assert rows == {
        ("from_start", "n-r0"): (2, 2, 1, 2),
        ("from_start", "n-r1"): (None, 0, None, 4),
        ("from_start", "n-r2"): (None, 0, None, 5),
        ("from_start", "n-r3"): (1, 4, 1, 1),
        ("from_start", "n-r4"): (0, 1, 1, 3),
        ("anytime", "n-r0"): (1, 3, 5, 2),
        ("anytime", "n-r1"): (0, 2, 3, 3),
        ("anytime", "n-r2"): (None, 0, None, 5),
        ("anytime", "n-r3"): (1, 4, 1, 1),
        ("anytime", "n-r4"): (0, 1, 1, 4),
    }


def with_gaps(clusters, *positions):
    """A table `clusters` without the states at these positions."""
    return clusters.filter(~pl.col("position").is_in(positions))


def test_a_gap_cuts_stays_and_is_no_transition():
    table = with_gaps(labelled([0, 0, 1, 1, 1, 1, 0, 0]), 3)
    rows = sequences.run_lengths(table).select("label", "start_position", "length", "entry_seen", "exit_seen").rows()
    assert rows == [(0, 0, 2, True, True), (1, 2, 1, True, False), (1, 4, 2, False, True), (0, 6, 2, True, False)]
    counts = sequences.transitions(table).select("source", "target", "count").rows()
    assert counts == [(0, 0, 2), (0, 1, 1), (1, 0, 1), (1, 1, 1)]
    late = with_gaps(labelled([0, 0, 1, 0]), 0)
    assert sequences.run_lengths(late)["entry_seen"].to_list() == [False, True, True]
    assert sequences.returns(late)["reason"].to_list() == ["the first state has no usable embedding"]
    assert sequences.returns(with_gaps(labelled([0, 1, 0, 0]), 1))["returns"].to_list() == [0]


def test_outliers_that_are_dropped_are_no_gap():
    rows = sequences.run_lengths(labelled([-1, 0, 0, -1, 0, 1]), drop_outliers=True)
    assert rows.select("length", "entry_seen", "exit_seen").rows() == [(3, True, True), (1, True, False)]


def test_dwell_times_are_those_of_kaplan_and_meier():
    clusters = with_gaps(labelled(*random_labels(seed=8, runs=20)), 4, 11)
    lengths = sequences.run_lengths(clusters)
    stays = lengths.filter((pl.col("label") >= 0) & pl.col("entry_seen"))
    cut = ~stays["exit_seen"].to_numpy()
    followed = stays["length"].to_numpy() - cut
    assert 0 < cut.sum() < len(cut) and (followed == 0).any()
    sample = stats.CensoredData.right_censored(followed[followed > 0], cut[followed > 0])
    table = dwell_times(lengths)
    np.testing.assert_allclose(table["survival"], stats.ecdf(sample).sf.evaluate(table["duration"].to_numpy()))
    for row in table.iter_rows(named=True):
        there = followed >= row["duration"]
        assert (row["at_risk"], row["runs"]) == (there.sum(), stays.filter(there)["run_id"].n_unique())
        here = followed == row["duration"]
        assert (row["exits"], row["censored"]) == ((here & ~cut).sum(), (here & cut).sum())


def test_dwell_times_of_a_planted_chain_are_geometric_though_runs_are_short():
    """A state is left with probability 0.1; runs of 12 states cut most stays. Those that ended are far too short."""
    rng = np.random.default_rng(9)
    labels = [(rng.random(12) < 0.1).cumsum() % 3 for _ in range(600)]
    lengths = sequences.run_lengths(labelled(*(run.tolist() for run in labels)))
    table = dwell_times(lengths)
    expected = 0.9 ** table["duration"].to_numpy()
    np.testing.assert_allclose(table["survival"], expected, atol=0.05)
    assert lengths.filter("exit_seen")["length"].mean() < 5 < 10


def test_a_run_that_settles_is_the_most_stable(tmp_path):
    """It ends at once by coming back to a caption; the others wander until they are cut."""
    u, _ = blobs([40], spread=0.01)
    away = unit(np.eye(24)[1:4] + 0.01)
    wander = np.concatenate([[u[0]], np.tile(np.stack([u[1], away[0], away[1], away[2]]), (3, 1))])
    vectors = {("text-a", "net-a", f"p{i}/0"): wander for i in range(3)} | {("text-a", "net-a", "p3/0"): u[[5, 6, 6]]}
    paths = write_states(tmp_path, vectors, MODALITY, loops={("net-a", "p3/0"): 2})
    cluster(*paths, tmp_path / "clusters", Cluster(min_cluster_size=3), max_length=24)
    tables = {name: pl.read_parquet(tmp_path / f"clusters/{name}.parquet") for name in TABLES}
    settled = tables["longest_runs"].filter(prompt_id="p3")
    assert settled.select("length", "rank", "exit_seen").rows() == [(12, 1, False)] * 2
    assert tables["clusters"].filter(prompt_id="p3").height == 2, (
        "states that follow from the loop are not computed ones"
    )
    (label,) = tables["clusters"].filter(prompt_id="p3")["label"].unique()
    stays = tables["transitions"].filter(source=label, target=label)
    assert stays.select("count", "runs").rows() == [(11, 1)]


@pytest.mark.parametrize("drop", [False, True])
def test_transitions_equal_a_count_and_rows_sum_to_one(drop):
    labels = random_labels(seed=1)
    table = sequences.transitions(labelled(*labels), drop)
    kept = [[label for label in run if not (drop and label == -1)] for run in labels]
    expected = Counter(pair for run in kept for pair in pairwise(run))
    assert {(row["source"], row["target"]): row["count"] for row in table.iter_rows(named=True)} == expected
    assert table.null_count().sum_horizontal().item() == 0
    sums = table.group_by("source").agg(pl.col("probability").sum())["probability"]
    np.testing.assert_allclose(sums, 1)
    leaving = Counter(source for run in kept for source, _ in pairwise(run))
    for row in table.iter_rows(named=True):
        assert row["probability"] == row["count"] / leaving[row["source"]]


def test_facets_do_not_mix():
    alone = labelled(*random_labels(seed=2))
    other = pl.concat([labelled(*random_labels(seed=3), network="m"), labelled(*random_labels(seed=4), embedder="f")])
    both = pl.concat([other, alone])

    def dwell(clusters):
        return dwell_times(sequences.run_lengths(clusters))

    for function in (
        sequences.run_lengths, dwell, sequences.transitions, sequences.label_phases, sequences.returns,
        sequences.outliers,
    ):  # fmt: skip
        assert function(both).filter(embedder="e", network="n").equals(function(alone))
    longest = sequences.longest_runs(sequences.run_lengths(both)).filter(embedder="e", network="n")
    assert longest.equals(sequences.longest_runs(sequences.run_lengths(alone)))


def test_label_phases_are_thirds_of_each_run():
    labels = random_labels(seed=5)
    table = sequences.label_phases(labelled(*labels))
    names = ["beginning", "middle", "end"]
    expected = Counter((names[3 * i // len(run)], label) for run in labels for i, label in enumerate(run))
    assert {(row["phase"], row["label"]): row["states"] for row in table.iter_rows(named=True)} == expected
    assert table["phase"].unique(maintain_order=True).to_list() == names
    np.testing.assert_allclose(table.group_by("phase").agg(pl.col("share").sum())["share"], 1)


def test_returns_to_the_initial_cluster():
    table = sequences.returns(labelled([1, 1, 0, 1, -1, 1, 1], [0, 0, 0], [2, 1, 1], [-1, 0, 0], [0, -1, 0]))
    columns = ["initial_label", "states", "states_inside", "left", "returns", "first_return"]
    assert table.select(columns).rows() == [
        (1, 7, 5, True, 2, 3),
        (0, 3, 3, False, 0, None),
        (2, 3, 1, True, 0, None),
        (None, 3, None, None, None, None),
        (0, 3, 2, True, 1, 2),
    ]
    assert table["reason"].is_null().to_list() == [True, True, True, False, True]


def test_outlier_shares():
    table = pl.concat([labelled([0, 1, -1, 1]), labelled([None, None], embedder="f")])
    rows = sequences.outliers(table).select(pl.exclude("network")).rows()
    assert rows == [("e", 4, 3, 1, 2, 0.75, 0.25, None), ("f", 2, 0, 0, 0, None, None, "too few")]


def test_agreement_of_embedders_equals_scikit_learn():
    a = random_labels(seed=6, most=60)
    rng = np.random.default_rng(7)
    b = [[label if rng.random() < 0.7 else int(rng.integers(-1, 3)) for label in run] for run in a]
    table = agreement(pl.concat([labelled(*a), labelled(*b, embedder="f")]))
    flat_a, flat_b = (np.concatenate(labels) for labels in (a, b))
    inside = (flat_a != -1) & (flat_b != -1)
    for outliers, kept in (("kept", np.ones_like(inside)), ("excluded", inside)):
        row = table.row(by_predicate=pl.col("outliers") == outliers, named=True)
        assert (row["between"], row["embedder_a"], row["embedder_b"], row["states"]) == (
            "embedders",
            "e",
            "f",
            kept.sum(),
        )
        pair = (flat_a[kept], flat_b[kept])
        assert row["ari"] == pytest.approx(adjusted_rand_score(*pair))
        assert row["ami"] == pytest.approx(adjusted_mutual_info_score(*pair))
        assert row["v_measure"] == pytest.approx(v_measure_score(*pair))
        assert 0.1 < row["ari"] < 0.9


def test_the_mutual_information_of_a_sample_is_about_that_of_all():
    rng = np.random.default_rng(10)
    a = [rng.integers(0, 4, size=400).tolist() for _ in range(20)]
    b = [[label if rng.random() < 0.6 else int(rng.integers(0, 4)) for label in run] for run in a]
    clusters = pl.concat([labelled(*a), labelled(*b, embedder="f")])
    whole, some = (agreement(clusters, most).row(0, named=True) for most in (0, 2000))
    assert some["states"] == 8000 and (some["ari"], some["v_measure"]) == (whole["ari"], whole["v_measure"])
    assert some["ami"] != whole["ami"] and some["ami"] == pytest.approx(whole["ami"], abs=0.05)


def test_renamed_labels_agree_fully_and_unrelated_ones_not():
    a = random_labels(seed=8, most=200)
    renamed = [[{-1: -1, 0: 2, 1: 0, 2: 1}[label] for label in run] for run in a]
    rng = np.random.default_rng(9)
    unrelated = [rng.permutation(run).tolist() for run in a]
    same = agreement(pl.concat([labelled(*a), labelled(*renamed, embedder="f")]))
    assert same.select("ari", "ami", "v_measure").to_numpy() == pytest.approx(np.ones((2, 3)))
    apart = agreement(pl.concat([labelled(*a), labelled(*unrelated, embedder="f")]))
    assert apart.select("ari", "ami").to_numpy() == pytest.approx(np.zeros((2, 2)), abs=0.03)


def test_agreement_of_networks_matches_prompt_seed_and_position():
    a, b = [[0, 1, 2, 0], [1, 1]], [[0, 1, 2], [1, 1, 2, 2]]
    table = agreement(pl.concat([labelled(*a), labelled(*b, network="m")]))
    row = table.row(by_predicate=pl.col("outliers") == "kept", named=True)
    assert (row["between"], row["network_a"], row["network_b"]) == ("networks", "m", "n")
    assert (row["states"], row["ari"]) == (5, 1.0)


def test_agreement_says_why_there_is_none():
    table = pl.concat([labelled([0, 0]), labelled([0, 0], embedder="f"), labelled([None, None], embedder="g")])
    reasons = {(r["embedder_a"], r["embedder_b"]): r["reason"] for r in agreement(table).iter_rows(named=True)}
    assert reasons == {
        ("e", "f"): "both have a single label",
        ("e", "g"): "fewer than two states that both label",
        ("f", "g"): "fewer than two states that both label",
    }


def planted(seed=0):
    """Trajectories that hop between three known places; their place is the truth of a clustering."""
    rng = np.random.default_rng(seed)
    vectors, truth = {}, {}
    for key in random_states(length=10, d=3):
        places = rng.integers(0, 3, size=10)
        vectors[key] = 5 * np.eye(8)[places] + 0.05 * rng.normal(size=(10, 8))
        truth[key] = places
    return vectors, truth


def run_cluster(tmp_path, vectors, **settings):
    cluster(*write_states(tmp_path, vectors, MODALITY), tmp_path / "clusters", Cluster(**settings))
    return {name: pl.read_parquet(tmp_path / f"clusters/{name}.parquet") for name in TABLES}


def test_the_stage_finds_planted_places(tmp_path):
    vectors, truth = planted()
    tables = run_cluster(tmp_path, vectors, min_cluster_size=5)
    clusters = tables["clusters"]
    for embedder in MODALITY:
        mine = clusters.filter(embedder=embedder)
        skip = 1 if MODALITY[embedder] == "text" else 0  # the prompt is no state that was generated
        expected = [truth[row["embedder"], row["network"], row["run_id"].split(":")[1]][row["position"] + skip]
                    for row in mine.iter_rows(named=True)]  # fmt: skip
        assert adjusted_rand_score(expected, mine["label"]) == 1
        assert mine["is_medoid"].sum() == 3
        medoid = mine.filter("is_medoid").select("label", "run_id", "sequence_number", "text")
        named = mine.select("label", r"^medoid_(run_id|sequence_number|text)$").unique("label")
        assert named.sort("label").rows() == medoid.sort("label").rows()
    assert clusters["sequence_number"].min() == 0
    assert tables["outliers"]["outliers"].sum() == 0
    # An image is told by the caption that follows it.
    image = clusters.filter(embedder="image", run_id="net-a:p0/0", sequence_number=2)
    assert image["text"].to_list() == ["p0 3"]
    assert tables["map"].select("x", "y").null_count().sum_horizontal().item() == 0


def test_the_stage_is_the_same_again_in_any_order_of_its_inputs(tmp_path):
    embeddings, trajectories = write_states(tmp_path, planted()[0], MODALITY)
    cluster(embeddings, trajectories, tmp_path / "a")
    cluster(embeddings[::-1], trajectories[::-1], tmp_path / "b")
    assert sorted(path.stem for path in (tmp_path / "a").iterdir()) == TABLES
    for name in TABLES:
        assert (tmp_path / f"a/{name}.parquet").read_bytes() == (tmp_path / f"b/{name}.parquet").read_bytes()


def test_too_few_states_are_rows_with_a_reason(tmp_path):
    tables = run_cluster(tmp_path, {("text-a", "net-a", "p0/0"): np.eye(4)})
    assert tables["clusters"]["label"].to_list() == [None] * 3
    assert tables["clusters"]["reason"].to_list() == ["3 states, a clustering needs 4"] * 3
    assert tables["map"]["x"].to_list() == [None] * 3
    assert tables["outliers"]["reason"].to_list() == ["3 states, a clustering needs 4"]
    for name in ("run_lengths", "longest_runs", "transitions", "label_phases", "returns", "agreement", "medoids"):
        assert tables[name].is_empty()
    wide = run_cluster(tmp_path, {("text-a", "net-a", "p0/0"): np.eye(6)}, min_cluster_size=9)
    assert "ask for 9" in wide["clusters"]["reason"][0] and wide["map"]["x"].null_count() == 0


def test_only_prompts_leave_empty_tables(tmp_path):
    tables = run_cluster(tmp_path, {("text-a", "net-a", "p0/0"): np.ones((1, 4))})
    assert all(table.is_empty() for name, table in tables.items() if name != "stability")
    assert tables["stability"]["reason"].to_list() == ["0 states, a clustering needs 4"]


def test_the_map_keeps_planted_places_apart(tmp_path):
    vectors, _ = planted()
    states = read_states(*write_states(tmp_path, vectors, MODALITY)).filter(pl.col("position") >= 0, embedder="image")
    u = unit(np.stack(states["vector"].to_list()))
    table = map_states(states, u)
    xy = table.select("x", "y").to_numpy()
    near = np.argsort(np.linalg.norm(xy[:, None] - xy[None], axis=-1), axis=1)[:, 1]
    assert (np.argmax(u, axis=1)[near] == np.argmax(u, axis=1)).all()


def test_a_cluster_of_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="min_cluster_size: 1 must be 0"):
        run_cluster(tmp_path, {("text-a", "net-a", "p0/0"): np.eye(6)}, min_cluster_size=1)
