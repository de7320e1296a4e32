"""Interruptions: whatever is killed, whenever, the study completes on a later run with the same bytes.

`DITSCOPE_CHAOS_KILLS` sets the number of kills (5; `make test-all` asks for 100), `DITSCOPE_CHAOS_SEED` their moments.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
refine: {refiners: [shapes-flux], checkpoint_every: 2}
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
        found = chaos.stable_files(tmp_path / "results/tiny")
        differ = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        assert differ == [], f"seed {SEED}"
        assert chaos.left_over(tmp_path / "results/tiny") == []
        print(f"chaos (seed {SEED}): {chaos.progress_of(killed)}", flush=True)
    record_property("kills", len(killed))


@contextmanager
def limited_files(folder: Path) -> Iterator[dict[str, str]]:
    """No file of the study's jobs may grow beyond 12 KB, as under a quota; an image shard takes 30 KB."""
    yield {"DITSCOPE_TEST_FILE_LIMIT": "12000"}


@contextmanager
def full_disk(folder: Path) -> Iterator[dict[str, str]]:
    """The results lie on a file system of their own, which has a few blocks left."""
    results = folder / "results"
    results.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", results], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield {}
        subprocess.run(["mount", "-o", "remount,size=64m", results], check=True)
        shutil.copytree(results, folder / "kept", symlinks=True)
    finally:
        subprocess.run(["umount", "-l", results], check=True)
    shutil.copytree(folder / "kept", results, dirs_exist_ok=True, symlinks=True)


@contextmanager
def read_only(folder: Path) -> Iterator[dict[str, str]]:
    """Nothing can be written to the folder of the model's images."""
    images = folder / "results/tiny/images/shapes-flux"
    images.parent.mkdir(parents=True)
    images.touch()  # a file where the folder should be: root, too, cannot write into it
    try:
        yield {}
    finally:
        images.unlink()


@pytest.mark.parametrize("obstacle", [limited_files, full_disk, read_only], ids=lambda o: o.__name__)
def test_a_job_that_cannot_write_leaves_no_half_output_and_completes_later(undisturbed, tmp_path, obstacle):
    arguments = study(tmp_path)
    shard = "results/tiny/images/shapes-flux/shard-00000.tar"
    # Every Python process of the study reads this module first: where a limit is asked for, it sets it in jobs.
    (tmp_path / "scripts/sitecustomize.py").write_text(
        "import os, resource, signal, sys\n"
        "limit = os.environ.get('DITSCOPE_TEST_FILE_LIMIT')\n"
        "if limit and any('/.snakemake/scripts/' in word for word in sys.orig_argv):\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))\n"
    )
    with obstacle(tmp_path) as environment:
        assert chaos.start(tmp_path, shard, *arguments, environment=environment).wait() != 0
        assert not (tmp_path / shard).exists()
    assert chaos.run(tmp_path, shard, *arguments) == 0, chaos.tail(tmp_path)
    assert (tmp_path / shard).read_bytes() == (undisturbed / shard).read_bytes()
    assert chaos.left_over(tmp_path / "results/tiny") == []
