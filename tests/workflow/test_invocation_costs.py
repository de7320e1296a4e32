"""Seconds per invocation from timing tables of finished studies, and the hours of trajectories that follow."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from ditscope.config import Config, load_config
from ditscope.core.settings import plain
from ditscope.trajectories.tables import TIMING
from ditscope.workflow.estimate import estimate_table, with_trajectories
from ditscope.workflow.invocation_costs import (
    invocation_costs,
    planned_invocations,
    seconds_beside,
    trajectory_seconds,
)
from loose_tables import write_loosely

MODELS = {
    "drawer": {"family": "dummy", "width": 32, "height": 32},
    "namer": {"family": "dummy-captioner"},
    "flux": {"family": "flux", "source": "models/shapes-flux", "steps": 8},
}


def study(folder: Path, models: dict | None = None, **trajectories) -> Config:
    """A config of three networks over three prompts with two seeds each."""
    csv = folder / "p.csv"
    csv.write_text("prompt\na ring\na star\na cross\n")
    networks = {"a": ["drawer", "namer"], "b": ["flux:int8", "namer"], "c": ["flux", "namer"]}
    settings = {"networks": ["a", "b"], "prompts": 0, "max_length": 5, "shard_size": 4} | trajectories
    return load_config(
        {
            "experiment": "new", "models": MODELS | (models or {}), "networks": networks,
            "schemes": {"int8": {"kind": "int8-weight-only"}}, "prompts": {"csv": str(csv), "seeds": [0, 1]},
            "trajectories": settings,
        }
    )  # fmt: skip


def finished(results: Path, config: Config, shards: list[list[tuple]], age: int = 0) -> Path:
    """A results folder with a plan and timing tables of (entry, seconds, batch_size, shared)."""
    results.mkdir(parents=True)
    plan = results / "plan.json"
    plan.write_text(json.dumps({"config": plain(config), "targets": {}, "rules": {}}))
    os.utime(plan, (1e9 - age, 1e9 - age))
    for number, rows in enumerate(shards):
        table = [
            {"network": "n", "run_id": f"{number}", "sequence_number": i, "entry": entry}
            | {"model": entry.partition(":")[0], "scheme": entry.partition(":")[2] or "base", "type": "IMAGE"}
            | {"seconds": seconds, "batch_size": batch, "shared": shared}
            for i, (entry, seconds, batch, shared) in enumerate(rows)
        ]
        file = results / f"trajectories/n/shard-{number:05d}.timing.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_loosely(pl.DataFrame(table, schema=TIMING.schema()), file, "trajectories.timing")
    return results


@pytest.fixture
def config(tmp_path) -> Config:
    return study(tmp_path)


def test_seconds_are_medians_of_what_was_computed(config, tmp_path):
    shards = [
        [("drawer", 1.0, 2, False), ("drawer", 3.0, 2, False), ("drawer", 99.0, 2, True), ("namer", 0.5, 1, False)],
        [("drawer", 2.0, 8, False), ("flux:int8", 7.0, 4, False)],
    ]
    costs = invocation_costs(config, finished(tmp_path / "results/old", config, shards))
    assert costs.rows() == [
        ("drawer", 2.0, pytest.approx(1.2), pytest.approx(2.8), 3, 2.0, "old"),
        ("flux:int8", 7.0, 7.0, 7.0, 1, 4.0, "old"),
        ("namer", 0.5, 0.5, 0.5, 1, 1.0, "old"),
    ]


def test_models_of_other_settings_do_not_count(config, tmp_path):
    slow = study(tmp_path, {"flux": MODELS["flux"] | {"steps": 50}, "drawer": MODELS["drawer"] | {"memory_mb": 7}})
    rows = [("drawer", 1.0, 1, False), ("flux:int8", 9.0, 1, False), ("flux", 9.0, 1, False), ("namer", 0.5, 1, False)]
    costs = invocation_costs(config, finished(tmp_path / "results/old", slow, [rows]))
    assert costs["entry"].to_list() == ["drawer", "namer"]
    compiled = study(tmp_path, compile="regional")
    assert len(invocation_costs(config, finished(tmp_path / "other/old", compiled, [rows]))) == 0


def test_what_the_measured_study_lacks_is_taken_from_the_latest_beside_it(config, tmp_path):
    results = tmp_path / "results"
    measured = finished(results / "measured", config, [[("drawer", 1.0, 1, False)]])
    finished(results / "older", config, [[("drawer", 5.0, 1, False), ("namer", 5.0, 1, False)]], age=100)
    finished(results / "newer", config, [[("namer", 3.0, 1, False)]], age=10)
    (results / "broken").mkdir()
    (results / "broken/plan.json").write_text(json.dumps({"config": {"no": "such key"}, "targets": {}}))
    costs = invocation_costs(config, measured).select("entry", "seconds", "measured_in").rows()
    assert costs == [("drawer", 1.0, "measured"), ("namer", 3.0, "newer")]


def test_every_place_of_every_cycle_is_counted(config):
    """Six runs of five invocations each: a generator has the places 0, 2 and 4, the captioner 1 and 3."""
    assert planned_invocations(config) == {"drawer": 18, "namer": 24, "flux:int8": 18}


def test_hours_of_trajectories_are_those_of_their_invocations(config, tmp_path):
    """Two shards measured, of 4 and 6 s of invocations in jobs of 35 s: 30 s of each job are something else."""
    shards = [
        [("drawer", 4.0, 1, False), ("drawer", 9.0, 1, True)],
        [("namer", 4.0, 1, False), ("namer", 2.0, 1, False)],
    ]
    measured = finished(tmp_path / "results/old", config, shards)
    assert seconds_beside(measured, 35.0) == 30.0 and seconds_beside(measured, 3.0) == 0.0
    assert seconds_beside(tmp_path / "nothing", 35.0) == 35.0
    table = estimate_table({"trajectory_shard": 4, "drift": 1}, {
        "trajectory_shard": {"seconds": 35.0, "memory": 1.0, "bytes": 10, "gpu": True},
        "drift": {"seconds": 36.0, "memory": 1.0, "bytes": 10, "gpu": False},
    })  # fmt: skip
    costs = invocation_costs(config, measured)
    assert trajectory_seconds(planned_invocations(config), costs) is None, "flux:int8 was measured nowhere"
    assert with_trajectories(table, config, measured, costs).equals(table)
    only = study(tmp_path, networks=["a"])
    assert trajectory_seconds(planned_invocations(only), costs) == 18 * 4 + 12 * 3
    hours = with_trajectories(table, only, measured, costs)
    assert dict(hours.select("rule", "hours").rows()) == {
        "drift": 0.01, "trajectory_shard": pytest.approx((18 * 4 + 12 * 3 + 4 * 30) / 3600)
    }  # fmt: skip
    unmeasured = estimate_table({"trajectory_shard": 4}, {})
    assert with_trajectories(unmeasured, only, measured, costs)["hours"][0] == pytest.approx((18 * 4 + 12 * 3) / 3600)
