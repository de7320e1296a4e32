"""A job ends with the workflow that started it: one that went on would write beside its successor."""

import os
import time
from pathlib import Path
from threading import Thread

import psutil

POLL_S = 0.5


def is_workflow(process: psutil.Process) -> bool:
    """Whether a process is Snakemake: the main one, or the one inside of a cluster's job."""
    try:
        return any(Path(word).name == "snakemake" for word in process.cmdline()[:3])
    except psutil.Error:  # ended meanwhile, or another user's
        return False


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that was killed and that nobody has waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_with_workflow() -> None:
    """Watch the Snakemake above this process, if there is one; within a second of its end, end with all children.

    Ending is abrupt, as by SIGKILL: outputs have their names only once they are whole, and finished slices are kept.
    """
    if above := next(filter(is_workflow, psutil.Process().parents()), None):
        Thread(target=end_after, args=(above,), name="orphan watch", daemon=True).start()


def end_after(process: psutil.Process) -> None:
    """Wait until `process` has ended, then kill this process's children and itself."""
    while is_alive(process):
        time.sleep(POLL_S)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)
