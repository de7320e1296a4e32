"""A job whose workflow was killed ends with all its children; one whose workflow lives, or that has none, goes on."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ditscope.workflow.orphans import WORKFLOW, pid_namespace

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
READY = (
    f"import subprocess, sys, time\nsys.path.insert(0, {str(SCRIPTS)!r})\nimport ditscope.workflow.orphans as orphans\n"
)
JOB = (
    READY
    + """
orphans.end_with_workflow()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("ready", flush=True)
time.sleep(60)
"""
)


def tree(folder: Path, announce: str, *, shell: bool) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A process that does what `announce` says and runs a job, through a shell if so told, and all that is below it."""
    (folder / "job.py").write_text(JOB)
    job = [sys.executable, str(folder / "job.py")]
    command = ["bash", "-c", f"{sys.executable} {folder / 'job.py'}; true"] if shell else job
    (folder / "main.py").write_text(f"{READY}{announce}\nsubprocess.run({command})\n")
    main = subprocess.Popen([sys.executable, str(folder / "main.py")], stdout=subprocess.PIPE, text=True)
    assert main.stdout and main.stdout.readline() == "ready\n"
    below = psutil.Process(main.pid).children(recursive=True)
    assert len(below) == (3 if shell else 2)
    return main, below


@pytest.mark.parametrize("shell", [False, True])
def test_job_and_its_children_end_with_the_workflow(tmp_path, shell):
    main, below = tree(tmp_path, "orphans.announce_workflow()", shell=shell)
    time.sleep(1)
    assert all(p.is_running() for p in below)
    main.kill()  # and nobody waits for it yet
    _, alive = psutil.wait_procs(below, timeout=10)
    main.wait()
    assert alive == []


def test_job_ends_whose_workflow_was_killed_before_it_had_begun():
    ended = subprocess.Popen(["true"])
    ended.wait()
    environment = os.environ | {WORKFLOW: f"{ended.pid} {pid_namespace()}"}
    assert subprocess.run([sys.executable, "-c", JOB], env=environment, timeout=30).returncode == 1


@pytest.mark.parametrize("announce", ["", "import os; os.environ[orphans.WORKFLOW] = '1000000000 pid:[1]'"])
def test_job_under_no_workflow_that_it_can_see_goes_on(tmp_path, announce):
    main, below = tree(tmp_path, announce, shell=False)
    main.kill()
    main.wait()
    gone, alive = psutil.wait_procs(below, timeout=2)
    for process in alive:
        process.kill()
    assert gone == [] and len(alive) == 2
