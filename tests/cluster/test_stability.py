"""Stability of clusters: planted places come again, a cloud of nothing does not, and medoids are found again."""

import numpy as np
import polars as pl
import pytest

from ditscope.cluster.settings import Cluster
from ditscope.cluster.stability import DRAWS, again_of, cluster_rows, half_clusterings, stability_row
from ditscope.cluster.stage import cluster, cluster_labels, labels_of_part, medoids
from ditscope.embed.files import unit
from state_tables import write_states


def half(u, prompts, settings):
    return half_clusterings(u, prompts, "e", lambda x, share: labels_of_part(settings, x, share))


def row_of(u, prompts, settings):
    return stability_row(cluster_labels(u, settings)[0], prompts, half(u, prompts, settings))


def test_planted_places_come_again_and_noise_does_not():
    rng = np.random.default_rng(0)
    prompts, settings = np.repeat(np.arange(10), 20), Cluster(min_cluster_size=8, epsilon=0.0)
    planted = unit(np.eye(12)[rng.integers(4, size=200)] + 0.05 * rng.normal(size=(200, 12)))
    row = row_of(planted, prompts, settings)
    assert (row["states"], row["prompts"], row["clusters"], row["draws"]) == (200, 10, 4, DRAWS)
    assert row["low"] > 0.95 and row["states_drawn"] == 100
    noise = row_of(unit(rng.normal(size=(200, 3))), prompts, Cluster(min_cluster_size=5, epsilon=0.0))
    assert noise["high"] < 0.5


def test_a_cluster_of_one_prompt_is_missing_from_halves_without_it():
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(8), 20)
    place = np.where(prompts == 7, 2, rng.integers(2, size=160))
    u = unit(np.eye(6)[place] + 0.02 * rng.normal(size=(160, 6)))
    settings = Cluster(min_cluster_size=6)
    labels, _ = cluster_labels(u, settings)
    rows = cluster_rows(u, labels, half(u, prompts, settings), medoids(u, labels))
    (alone,) = (row for row in rows if row["label"] == labels[prompts == 7][0])
    assert 0 < alone["draws"] < DRAWS and all(row["draws"] == DRAWS for row in rows if row is not alone)
    assert all(row["jaccard"] == 1 and row["medoid_cosine"] == pytest.approx(1, abs=0.01) for row in rows)


def test_jaccard_of_a_cluster_and_the_draws_most_similar():
    u = np.eye(8)
    members = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    rows, again = np.array([0, 1, 2, 4, 5]), np.array([3, 3, -1, 3, 9])
    likeness, cosine = again_of(u, members, 1, rows, again)
    assert (
        likeness == 2 / 4 and cosine == 0
    )  # three members drawn, two of the three of cluster 3, whose medoid is row 0
    assert again_of(u, members, 1, np.array([4, 5]), np.array([0, 0])) is None
    assert again_of(u, members, 1, np.array([0, 4]), np.array([-1, 0]))[0] == 0


def test_few_prompts_and_single_labels_have_a_reason(tmp_path):
    rng = np.random.default_rng(2)
    u = unit(np.eye(5)[rng.integers(3, size=60)] + 0.01 * rng.normal(size=(60, 5)))
    three = row_of(u, np.repeat(np.arange(3), 20), Cluster())
    assert three["reason"] == "3 prompts, halves need 4" and "ari" not in three
    one = row_of(np.tile(u[:1], (60, 1)), np.repeat(np.arange(6), 10), Cluster())
    assert one["reason"] == "all states have one label"
    vectors = {("text", "n", f"p{i}/0"): u[10 * i : 10 * i + 10] for i in range(6)}
    cluster(*write_states(tmp_path, vectors, {"text": "text"}), tmp_path / "c", Cluster(min_cluster_size=100))
    table = pl.read_parquet(tmp_path / "c/stability.parquet")
    assert "ask for 100" in table["reason"][0] and pl.read_parquet(tmp_path / "c/medoids.parquet").is_empty()
