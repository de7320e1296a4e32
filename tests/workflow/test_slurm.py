"""The workflow on a real SLURM: same results as without, GPUs, retries, lost nodes, and a main process that is killed.

Every DAG level costs SLURM ten seconds or more, so the study runs as far as images (arrays of GPU shards) and the
codebook that gathers those of one model (a CPU job); what a study cannot show quickly has Snakefiles of its own. All
use the shipped profile, with a shared virtual environment for conda and faster status checks.
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from snakemake_executor_plugin_slurm_jobstep import parse_array_execs

import slurm_cluster
import workflow
from slurm_cluster import MISSING, Cluster

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM here: {', '.join(MISSING)} missing"),
]

TARGETS = ["generate", "results/tiny/refine/shapes-flux/codebook.safetensors"]
TINY = ("--configfile", "experiments/tiny.yaml")
SHARED_ENVIRONMENT = ("--sdm", "env-modules")
QUICK = ("--slurm-init-seconds-before-status-checks", "5")

TROUBLE = """
import os, sys, time
from pathlib import Path

sys.path.insert(0, os.environ["LIBRARY"])
from ditscope.workflow.array_task import go_on_as_own_task

go_on_as_own_task()

rule all:
    input: "memory", "time", "cancelled", "lost", "wide", "alone", expand("shards/{i}", i=range(6))

# Takes 2.2 GB: more than the profile's default for the first attempt.
rule memory:
    output: "memory"
    run:
        Path("memory.attempts").open("a").write(f"{resources.mem_mb}\\n")
        block = bytearray(2200 * 1024**2)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(4)
        Path(output[0]).touch()

# Ends at its second attempt only.
rule time:
    output: "time"
    resources: runtime=lambda wildcards, attempt: attempt
    run:
        Path("time.attempts").open("a").write(f"{resources.runtime}\\n")
        time.sleep(300 if resources.runtime == 1 else 0)
        Path(output[0]).touch()

# The test cancels the first attempt.
rule cancelled:
    output: "cancelled"
    run:
        with Path("cancelled.attempts").open("a") as file:
            file.write(os.environ["SLURM_JOB_ID"] + "\\n")
        time.sleep(300 if len(Path("cancelled.attempts").read_text().split()) == 1 else 0)
        Path(output[0]).touch()

# The test takes its node away.
rule lost:
    output: "lost"
    resources: gpu=1
    run:
        with Path("lost.attempts").open("a") as file:
            file.write(os.environ["SLURM_JOB_ID"] + "\\n")
        time.sleep(300 if len(Path("lost.attempts").read_text().split()) == 1 else 0)
        Path(output[0]).touch()

rule wide:
    input: "lost"
    output: "wide"
    resources: gpu=2
    shell: "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES > {output}"

# Asks for what benchmark_run asks for.
rule alone:
    input: "memory", "time", "cancelled"
    output: "alone"
    threads: 16
    resources: slurm_extra="--exclusive"
    shell: "squeue --noheader --jobs $SLURM_JOB_ID --format='%C %h %N' > {output}"

# Two arrays, as the profile names this rule. In the longer one the first task is slow, by more than `latency-wait`,
# and the last one fails once the first is done.
rule image_shard:
    output: "shards/{i}"
    resources: mem_mb=1000
    run:
        with Path(f"{wildcards.i}.attempts").open("a") as file:
            file.write(os.environ["SLURM_JOB_ID"] + "\\n")
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        time.sleep({"1": 12, "4": 30}.get(task, 0))
        Path(output[0]).touch()
        if task == "4":
            raise RuntimeError("failed")
"""

BEATS = """
rule beats:
    output: "done"
    shell: "for i in $(seq 60); do echo $SLURM_JOB_ID $(date +%s.%N) >> beats; sleep 0.25; done; touch {output}"
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    running = slurm_cluster.start(tmp_path_factory.mktemp("slurm") / "cluster")
    yield running
    running.stop()


@contextmanager
def snakemake(
    cluster: Cluster, folder: Path, *arguments: str, check: bool = True, timeout: float = 420
) -> Iterator[subprocess.Popen]:
    """Start `snakemake --profile slurm` in `folder`, its output in `out.txt` there; with `check` it must succeed."""
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen(
            [*workflow.SNAKEMAKE, "--profile", "slurm", *arguments],
            cwd=folder,
            env=environment(cluster, folder),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
        if check:
            assert process.wait(timeout) == 0, (folder / "out.txt").read_text()[-8000:]
    finally:
        process.kill()
        process.wait()


def environment(cluster: Cluster, folder: Path) -> dict[str, str]:
    """The cluster's environment, without profiles of the user's; one thread a job, as each has one core.

    The GPUs that it hands out are none: its jobs compute on the CPU.
    """
    return cluster.environment | {
        "DITSCOPE_CPU": "1",
        "HOME": str(folder),
        "COLUMNS": "200",
        "LIBRARY": str(workflow.ROOT / "scripts"),
        "SNAKEMAKE_SLURM_PARTITIONS": str(cluster.root / "partitions.yaml"),
    }


def small_workflow(folder: Path, text: str) -> Path:
    """A folder with a Snakefile of the test's own and the shipped profile."""
    folder.mkdir()
    (folder / "Snakefile").write_text(text)
    (folder / "profiles").symlink_to(workflow.ROOT / "profiles")
    (folder / "slurm").symlink_to("profiles/slurm")
    return folder


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory) -> Path:
    """The tiny study as far as its first codebook, through SLURM."""
    folder = workflow.checkout(tmp_path_factory.mktemp("study") / "slurm")
    with snakemake(cluster, folder, *TINY, *SHARED_ENVIRONMENT, *QUICK, *TARGETS):
        pass
    return folder


def test_results_are_those_of_a_local_run(study, tmp_path):
    local = workflow.checkout(tmp_path / "local")
    done = workflow.snakemake(local, *TARGETS, "--cores", "2", *TINY, root=local, timeout=400)
    assert done.returncode == 0, done.stdout[-6000:]
    patterns = (
        "prompts/*.parquet",
        "images/*/shard-?????.tar",
        "images/*/shard-?????.parquet",
        "refine/*/*.*",
        "refine/*/data/*.tar",
    )
    results = [path.relative_to(local) for p in patterns for path in sorted((local / "results/tiny").glob(p))]
    assert len(results) == 2 + 4 + 4 + 5, "of the refiner: a shard of data, its table and facts, codebook, assignments"
    assert [str(path) for path in results if (local / path).read_bytes() != (study / path).read_bytes()] == []


def test_shards_are_one_array_of_gpu_jobs_that_see_different_devices(study):
    assert re.findall(r"Submitted array job with Snakemake IDs ([\d,]+)", (study / "out.txt").read_text())
    ran = []
    for log in sorted((study / "results/tiny/logs/generate").glob("*/*.log")):
        clock, node, gpu = re.match(r"(\S+) rule image_shard on (\w+), GPU (.+)\n", log.read_text()).groups()
        assert node == "gpu1" and gpu in {"0", "1"}
        ran.append((clock, time.strftime("%H:%M:%S", time.localtime(log.stat().st_mtime)), gpu))
    assert len(ran) == 4
    together = [(a, b) for i, a in enumerate(ran) for b in ran[:i] if a[0] < b[1] and b[0] < a[1]]
    assert together, "no two of them ran at the same time"
    assert all(a[2] != b[2] for a, b in together)


def test_cpu_jobs_keep_off_the_gpu_node(study):
    for log in (study / "results/tiny/logs/refine").glob("*/codebook.log"):
        assert " rule refine_codebook on cpu1, GPU none\n" in log.read_text()


def test_second_run_submits_nothing(cluster, study):
    done = subprocess.run(
        [*workflow.SNAKEMAKE, "--profile", "slurm", *TINY, *SHARED_ENVIRONMENT, "--dry-run", *TARGETS],
        cwd=study,
        env=environment(cluster, study),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def troubled(cluster, tmp_path_factory) -> Path:
    """A workflow of jobs that fail, each in its way, and that came to its end."""
    folder = small_workflow(tmp_path_factory.mktemp("troubled") / "folder", TROUBLE)
    with snakemake(cluster, folder, *SHARED_ENVIRONMENT, *QUICK, "--latency-wait", "4", "--slurm-array-limit", "4"):
        wait_for(lambda: lines(folder / "cancelled.attempts"))
        cluster("scancel", *lines(folder / "cancelled.attempts"))
        wait_for(lambda: lines(folder / "lost.attempts"))
        cluster.lose_node("gpu1")
        wait_for(lambda: not cluster("squeue", "--noheader", "--states=running", "--nodelist=gpu1"))
        cluster.start_node("gpu1")
    return folder


def test_failed_cancelled_and_lost_jobs_are_tried_again_with_what_they_need(troubled):
    assert lines(troubled / "memory.attempts") == ["2000", "4000"]
    assert lines(troubled / "time.attempts") == ["1", "2"]
    assert len(lines(troubled / "cancelled.attempts")) == 2
    assert len(lines(troubled / "lost.attempts")) == 2
    assert lines(troubled / "wide") == ["gpu1", "0,1"]
    assert lines(troubled / "alone")[:2] == ["16", "NO"], "cores, and whether others may use the node"


def test_tasks_of_an_array_leave_each_other_alone(troubled):
    assert re.findall(r"The individual task IDs are (\S+)\.", (troubled / "out.txt").read_text()) == ["1-4", "5-6"]
    assert sorted(len(lines(troubled / f"{i}.attempts")) for i in range(6)) == [1, 1, 1, 1, 1, 2]
    assert sorted(path.name for path in (troubled / "shards").iterdir()) == list("012345")


def test_the_largest_array_has_a_command_that_the_kernel_takes(study):
    limit = yaml.safe_load((workflow.ROOT / "profiles/slurm/config.yaml").read_text())["slurm-array-limit"]
    logs = [log.read_text() for log in (study / ".snakemake/slurm_logs").rglob("*.log")]
    passed = [option[1] for log in logs if (option := re.search(r"--slurm-jobstep-array-execs=(\S+)", log))]
    assert passed and all(limit * len(p) / len(parse_array_execs(p)) < 128 * 1024 / 2 for p in passed)


def test_killed_run_is_resumed_and_no_two_jobs_write_at_once(cluster, tmp_path):
    folder = small_workflow(tmp_path / "killed", BEATS)
    command = [sys.executable, "-m", "ditscope.cli", "resume", f"--options={' '.join((*SHARED_ENVIRONMENT, *QUICK))}"]
    variables = environment(cluster, folder) | {"PYTHONPATH": str(workflow.ROOT / "scripts")}
    with snakemake(cluster, folder, *SHARED_ENVIRONMENT, *QUICK, check=False) as main:
        wait_for(lambda: lines(folder / "beats"))
        refused = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2 and f"a run is alive (process {main.pid})" in refused.stderr
        main.send_signal(signal.SIGKILL)
    orphan = lines(folder / "beats")[0]
    assert cluster("squeue", "--noheader", "--format=%A") == orphan, "the job outlived the main process"
    other = cluster("sbatch", "--parsable", f"--chdir={folder}", "--output=/dev/null", "--mem=100", "--wrap=sleep 300")
    subprocess.run(command, cwd=folder, env=variables, check=True, timeout=200)
    jobs = lines(folder / "beats")[::2]
    assert set(jobs) > {orphan}
    assert len([1 for a, b in pairwise(jobs) if a != b]) == 1, "their lines do not alternate"
    assert jobs.count(jobs[-1]) == 60
    assert cluster("squeue", "--noheader", "--format=%A") == other, "a job that is not Snakemake's is left alone"
    cluster("scancel", other)
