"""Networks too poor to show anything are named in every table; runs of fixed and derived seeds are kept apart."""

import numpy as np
import polars as pl
import pytest

from ditscope.cluster.settings import Cluster
from ditscope.cluster.stage import cluster
from ditscope.core.schema import tables_of
from ditscope.drift.stage import drift
from ditscope.embed.files import degenerate_networks, marked, read_states, row_hashes
from ditscope.topology.stage import topology
from state_tables import DERIVED, MODALITY, write_states

STAGES = {"drift": drift, "cluster": cluster, "topology": topology}
REASON = "distinct states of the median run: 1 of 7, 3 needed"


def poor_and_rich(length=8, d=6):
    """Under two embedders a network that stays where it is and one that moves."""
    rng = np.random.default_rng(0)
    vectors = {}
    for embedder in ("text-a", "text-b"):
        for run in ("p0/0", "p0/1", "p1/0", "p1/1", "p2/0", "p2/1"):
            walk = 1 + rng.normal(size=(length, d)).cumsum(axis=0)
            vectors[embedder, "still", run] = np.repeat(walk[:1], length, axis=0)
            vectors[embedder, "moving", run] = walk
    return vectors


def test_the_median_run_decides_with_its_number(tmp_path):
    states = read_states(*write_states(tmp_path, poor_and_rich(), MODALITY))
    table = degenerate_networks(states)
    assert table.select("network", "median_states", "median_distinct", "degenerate").rows() == [
        ("moving", 7, 7, None), ("still", 7, 1, REASON)] * 2  # fmt: skip


def test_every_table_says_that_its_data_are_degenerate(tmp_path):
    paths = write_states(tmp_path, poor_and_rich(), MODALITY)
    for stage, function in STAGES.items():
        function(*paths, tmp_path / stage)
        for table in tables_of(stage):
            frame = pl.read_parquet(tmp_path / stage / f"{table.stem}.parquet")
            networks = [name for name in ("network", "network_a", "network_b") if name in frame.columns]
            assert frame.columns[-1] == "degenerate", table.name
            if table.name == "drift.quantized":
                assert frame.is_empty(), "no network here is quantized"
            elif networks:
                still = pl.any_horizontal(pl.col(name) == "still" for name in networks)
                assert frame.filter(still)["degenerate"].unique().to_list() == [REASON], table.name
                assert frame.filter(~still)["degenerate"].null_count() == frame.filter(~still).height
            else:
                assert frame["degenerate"].null_count() == frame.height, "the moving network is not"


def test_an_embedder_is_degenerate_where_all_its_networks_are():
    cells = {"embedder": ["a", "a", "b"], "network": ["m", "n", "m"], "degenerate": ["x", None, "y"]}
    poor = pl.DataFrame(cells)
    assert marked(pl.DataFrame({"embedder": ["a", "b"]}), poor)["degenerate"].to_list() == [None, "y"]
    pairs = pl.DataFrame({"embedder": ["a", "a"], "network_a": ["n", "n"], "network_b": ["m", "n"]})
    assert marked(pairs, poor)["degenerate"].to_list() == ["x", None]


def test_fixed_and_derived_seeds_of_a_network_have_each_their_reason():
    networks = ["n (derived seeds)", "n (fixed seeds)", "m"]
    poor = pl.DataFrame({"embedder": ["a"] * 3, "network": networks, "degenerate": [None, "x", "y"]})
    rows = pl.DataFrame({"network": ["n", "n", "m"], "seeds": ["derived", "fixed", "fixed"]})
    assert marked(rows, poor)["degenerate"].to_list() == [None, "x", "y"]


def test_equal_rows_have_one_number_wherever_they_stand():
    x = np.random.default_rng(1).normal(size=(20_000, 5)).astype(np.float32)
    x[12_345] = x[3]
    numbers = row_hashes(x)
    assert numbers[12_345] == numbers[3] and len(np.unique(numbers)) == len(x) - 1


def test_runs_of_fixed_and_of_derived_seeds_are_two_networks(tmp_path):
    vectors = {key: x for key, x in poor_and_rich().items() if key[1] == "moving"}
    derived = {"p0/0": f"p0/{DERIVED}", "p1/0": f"p1/{DERIVED}"}
    mixed = {(embedder, network, derived.get(run, run)): x for (embedder, network, run), x in vectors.items()}
    paths = write_states(tmp_path, mixed, MODALITY)
    states = read_states(*paths)
    assert states["network"].unique().sort().to_list() == ["moving (derived seeds)", "moving (fixed seeds)"]
    assert states.filter(seed=DERIVED)["network"].unique().to_list() == ["moving (derived seeds)"]
    drift(*paths, tmp_path / "drift")
    nulls = pl.read_parquet(tmp_path / "drift/nulls.parquet")
    assert nulls.filter(embedder="text-a")["runs"].to_list() == [2, 2, 4, 4]
    one_kind = read_states(*write_states(tmp_path / "one", vectors, MODALITY))
    assert one_kind["network"].unique().to_list() == ["moving"]


@pytest.mark.parametrize("stage", STAGES)
def test_identical_rows_run_through_and_are_named(stage, tmp_path):
    vectors = {("text-a", "net", f"p{i}/0"): np.ones((6, 4)) for i in range(3)}
    STAGES[stage](*write_states(tmp_path, vectors, MODALITY), tmp_path / "out")
    for table in tables_of(stage):
        frame = pl.read_parquet(tmp_path / f"out/{table.stem}.parquet")
        assert frame.is_empty() or REASON.replace("7", "5") in frame["degenerate"][0]


@pytest.mark.parametrize("stage", STAGES)
def test_gaps_and_useless_vectors_are_left_out_by_name(stage, tmp_path, caplog):
    vectors = poor_and_rich()
    vectors["text-a", "moving", "p0/0"][3] = 0
    vectors["text-a", "moving", "p1/0"][4] = np.nan
    paths = write_states(tmp_path, vectors, MODALITY, without={("text-a", "moving", "p2/0", 5)})
    STAGES[stage](*paths, tmp_path / "out")
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "2 zero, NaN or Inf vectors are left out, as gaps" in line
    assert "text-a, moving, run moving:p0/0, sequence number 5" in line
    assert "text-a, moving, run moving:p1/0, sequence number 7" in line


def test_a_sample_smaller_than_the_smallest_cluster_is_a_row_with_a_reason(tmp_path):
    cluster(*write_states(tmp_path, poor_and_rich(), MODALITY), tmp_path / "out", Cluster(min_cluster_size=500))
    reasons = pl.read_parquet(tmp_path / "out/outliers.parquet")["reason"]
    assert all("ask for 500" in reason for reason in reasons)
