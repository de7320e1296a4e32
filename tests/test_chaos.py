"""Interruptions: whatever is killed, whenever, the study completes on a later run with the same bytes.

`DITSCOPE_CHAOS_KILLS` sets the number of kills (5; `make test-all` asks for 100), `DITSCOPE_CHAOS_SEED` their moments.
"""

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

import chaos
import workflow

KILLS = int(os.environ.get("DITSCOPE_CHAOS_KILLS", "5"))
SEED = int(os.environ.get("DITSCOPE_CHAOS_SEED", str(random.SystemRandom().randrange(2**32))))
MEAN_SECONDS = 8  # from the first job that runs to the kill

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(3600 + 60 * KILLS),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the jobs' processes in /proc"),
]

# Every kind of job that keeps unfinished work, one model of each, a slice an item.
SMALL = """
experiment: tiny
generate: {models: [shapes-flux], slice_size: 1}
capture: {models: [shapes-flux], sets: {all: {generations: 2, steps: "0,-1"}}}
calibrate: {models: [shapes-flux], shard_size: 2, slice_size: 1}
sensitivity: {models: [shapes-flux], bits: [4, 8], layer_groups: 1}
benchmark: {models: []}
trajectories: {networks: [flux-blip]}
embed: {embedders: [random-walk]}
refine: {models: [shapes-flux], checkpoint_every: 2}
"""


def study(folder: Path) -> tuple[str, ...]:
    """A checkout in `folder`; the arguments that run the small study in it."""
    workflow.checkout(folder)
    (folder / "small.yaml").write_text(SMALL)
    return ("--configfile", "experiments/tiny.yaml", "small.yaml")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A checkout in which the study ran in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert chaos.run(folder, *study(folder)) == 0, chaos.tail(folder)
    return folder


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(undisturbed, tmp_path, record_property):
    arguments = study(tmp_path)
    wanted = chaos.stable_files(undisturbed / "results/tiny")
    assert len(wanted) > 50
    rng = random.Random(SEED)
    killed: list[str] = []
    while len(killed) < KILLS:
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        killed += chaos.run_killed(tmp_path, KILLS - len(killed), rng, MEAN_SECONDS, *arguments)
        assert chaos.stable_files(tmp_path / "results/tiny") == wanted, f"seed {SEED}"
        assert chaos.left_over(tmp_path / "results/tiny") == []
        print(f"chaos (seed {SEED}): {chaos.progress_of(killed)}", flush=True)
    record_property("kills", len(killed))
