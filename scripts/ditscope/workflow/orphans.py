"""A job ends with the workflow that started it: one that went on would write beside its successor."""

import os
import time
from contextlib import suppress
from threading import Thread

import psutil

WORKFLOW = "DITSCOPE_WORKFLOW"  # in the environment of jobs: process id of their Snakemake, and where it is counted
POLL_S = 0.5


def announce_workflow() -> None:
    """Name this Snakemake process to the jobs that it will start; one inside of a cluster's job names itself anew."""
    os.environ[WORKFLOW] = f"{os.getpid()} {pid_namespace()}"


def end_with_workflow() -> None:
    """Watch the Snakemake process that started this one, if any; within a second of its end, end with all children.

    That includes one that ended before this job had begun. Ending is abrupt, as by SIGKILL: outputs have their names
    only once they are whole, and finished slices are kept. In a container that counts processes anew nobody watches.
    """
    pid, _, namespace = os.environ.get(WORKFLOW, "").partition(" ")
    if pid and namespace == pid_namespace():
        Thread(target=end_after, args=(int(pid),), name="orphan watch", daemon=True).start()


def pid_namespace() -> str:
    """Where process ids of this process are counted; empty where the system has no such namespaces."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def end_after(pid: int) -> None:
    """Wait until a process has ended, then kill this process's children and itself."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(POLL_S)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)
