"""Kill a running workflow at random moments and run it again, until it is complete: for test_chaos.py."""

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from workflow import SNAKEMAKE

# What DESIGN calls timing, and what is laid out by others (DuckDB) or holds the time of its making.
UNSTABLE = ("*.timing.parquet", "*.timing.json", "catalog.duckdb", "*.html", "progress.md", ".snakemake_timestamp")
# Drawn from timings.
TIMED = (
    "figures/benchmark-latency.*", "figures/benchmark-pareto.*", "figures/benchmark-batches.*",
    "figures/invocation-times.*", "tables/benchmark.*", "benchmarks/recommendation.md",
)  # fmt: skip
KINDS = {"workflow": 5, "main": 2, "job": 3}  # what a kill hits, and how often: all processes, Snakemake alone, one job
BOOKS = ("logs", ".benchmarks", ".checksums", ".partial")


def start(folder: Path, *arguments: str, environment: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
    """Start Snakemake in a checkout as the leader of a process group; its output is appended to snakemake.log."""
    with open(folder / "snakemake.log", "ab") as log:
        return subprocess.Popen(
            [*SNAKEMAKE, *arguments, "--profile", "local", "--cores", "2", "--resources", "gpu=2"],
            cwd=folder,
            env=os.environ | {"HOME": str(folder), "PYTHONPATH": str(folder / "scripts")} | dict(environment),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run(folder: Path, *arguments: str) -> int:
    """Run Snakemake in a checkout to its end, after the lock that a killed run left is taken away."""
    assert start(folder, "--unlock", *arguments).wait() == 0, tail(folder)
    return start(folder, *arguments).wait()


def tail(folder: Path, size: int = 6000) -> str:
    """The end of what Snakemake said."""
    return (folder / "snakemake.log").read_text(errors="replace")[-size:]


def processes() -> Iterator[tuple[int, int, str]]:
    """Process id, process group and command line of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                group = int((entry / "stat").read_text().rpartition(")")[2].split()[2])
                yield int(entry.name), group, (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, IndexError):  # it ended meanwhile
                continue


def jobs_of(group: int) -> list[int]:
    """Processes of a process group that run a rule's script."""
    return [pid for pid, of_group, command in processes() if of_group == group and "/.snakemake/scripts/" in command]


def kill_once(running: subprocess.Popen[bytes], rng: random.Random, mean_seconds: float) -> str:
    """Kill the whole group, the main process alone, or one job, some time after a job has begun; what was killed.

    Nothing if all ended. Jobs whose main process was killed alone have to end by themselves: nobody waits for them.
    """
    while not jobs_of(running.pid):
        if running.poll() is not None:
            return ""
        time.sleep(0.05)
    time.sleep(rng.expovariate(1 / mean_seconds) * rng.choice((1, 1, 0.02)))  # a third of them as jobs begin
    jobs = jobs_of(running.pid)
    if running.poll() is not None or not jobs:
        return ""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "job":
        try:
            os.kill(rng.choice(jobs), signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            return ""
        return kind
    (os.kill if kind == "main" else os.killpg)(running.pid, signal.SIGKILL)
    running.wait()
    while kind == "workflow" and any(group == running.pid for _, group, _ in processes()):
        time.sleep(0.05)
    return kind


def run_killed(folder: Path, kills: int, rng: random.Random, mean_seconds: float, *arguments: str) -> list[str]:
    """Run a study to its end under at most `kills` kills; what each of them killed.

    A run that loses a job goes on with the others, and may lose more.
    """
    killed: list[str] = []
    running = None
    while len(killed) < kills:
        if running is None or running.poll() is not None:
            if running is not None and running.returncode == 0:
                return killed
            assert start(folder, "--unlock", *arguments).wait() == 0, tail(folder)
            running = start(folder, *arguments)
        killed += filter(None, [kill_once(running, rng, mean_seconds)])
    if running:
        running.wait()
    assert run(folder, *arguments) == 0, tail(folder)
    return killed


def stable_files(results: Path) -> dict[str, str]:
    """Digest of every file of a study that must be the same, byte for byte, however often it was interrupted."""
    digests = {}
    for file in sorted(results.rglob("*")):
        name = file.relative_to(results)
        if not file.is_file() or name.parts[0] in BOOKS:
            continue
        if not any(name.match(pattern) for pattern in (*UNSTABLE, *TIMED)):
            digests[name.as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return digests


def left_over(results: Path) -> list[str]:
    """Unfinished work that nothing will use again."""
    partial = [p for p in results.rglob("*.partial") if p.name != ".partial"]
    return [str(p) for p in [*partial, *(results / ".partial").rglob("*")]]


def progress_of(killed: list[str]) -> str:
    """One line for the test's report."""
    return json.dumps({"kills": len(killed)} | {kind: killed.count(kind) for kind in KINDS})
