"""A job whose workflow was killed ends with all its children; one whose workflow lives, or that has none, goes on."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
JOB = f"""
import subprocess, sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
from ditscope.orphans import end_with_workflow
end_with_workflow()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("ready", flush=True)
time.sleep(60)
"""
MAIN = "import subprocess, sys\nsubprocess.run({command})\n"


def tree(name: str, folder: Path, *, shell: bool) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A process called `name` that runs a job, through a shell if so told, and all that is below it."""
    (folder / "job.py").write_text(JOB)
    job = [sys.executable, str(folder / "job.py")]
    command = ["bash", "-c", f"{sys.executable} {folder / 'job.py'}; true"] if shell else job
    (folder / name).write_text(MAIN.format(command=command))
    main = subprocess.Popen([sys.executable, str(folder / name)], stdout=subprocess.PIPE, text=True)
    assert main.stdout and main.stdout.readline() == "ready\n"
    below = psutil.Process(main.pid).children(recursive=True)
    assert len(below) == (3 if shell else 2)
    return main, below


@pytest.mark.parametrize("shell", [False, True])
def test_job_and_its_children_end_with_the_workflow(tmp_path, shell):
    main, below = tree("snakemake", tmp_path, shell=shell)
    time.sleep(1)
    assert all(p.is_running() for p in below)
    main.kill()
    main.wait()
    _, alive = psutil.wait_procs(below, timeout=10)
    assert alive == []


def test_process_under_no_workflow_goes_on(tmp_path):
    main, below = tree("pytest", tmp_path, shell=False)
    main.kill()
    main.wait()
    gone, alive = psutil.wait_procs(below, timeout=2)
    for process in alive:
        process.kill()
    assert gone == [] and len(alive) == 2
