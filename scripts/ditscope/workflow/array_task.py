"""A task of a SLURM job array runs its own command, and nothing of another task's.

snakemake-executor-plugin-slurm 2.8.0 starts every task of an array with a Snakemake whose target is the *first* task's
job, and that one runs the task's own command in a process below it. Afterwards it looks for the first task's outputs:
it touches them, gives up where they are not there within `latency-wait`, and removes them where its own command failed
(its issue 447). The commands are in one argument; where that is too long for the kernel, they are lost, and every task
would run the first one's.
"""

import argparse
import os
import sys
import zlib
from collections.abc import Mapping, Sequence

from snakemake.exceptions import WorkflowError

# The id of the job, in the environment of a task that has its own command.
OWN = "DITSCOPE_ARRAY_TASK"


def own_command(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """The shell command of this task, where `arguments` are those that Snakemake was started with in an array.

    None where they are its own already, as the first task's, and outside of arrays. The executor passes the commands of
    all tasks but the first, each as hexadecimal zlib. WorkflowError where they were lost.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--executor")
    parser.add_argument("--slurm-jobstep-array-execs")
    given = parser.parse_known_args(arguments)[0]
    task = environment.get("SLURM_ARRAY_TASK_ID")
    is_other = given.executor == "slurm-jobstep" and task is not None and task != environment["SLURM_ARRAY_TASK_MIN"]
    if not is_other or environment.get(OWN) == environment["SLURM_JOB_ID"]:
        return None
    if not given.slurm_jobstep_array_execs:
        raise WorkflowError(
            "the tasks of this job array came without their commands: these were too long for one call of sbatch, or "
            "passed as a script; give a smaller --slurm-array-limit, or --slurm-array-jobs none"
        )
    from snakemake_executor_plugin_slurm_jobstep import parse_array_execs  # no other job needs it

    return zlib.decompress(bytes.fromhex(parse_array_execs(given.slurm_jobstep_array_execs)[task])).decode()


def go_on_as_own_task() -> None:
    """Replace this process by the task's own command; does nothing anywhere else. Call it before the rules are read."""
    if command := own_command(sys.argv[1:], os.environ):
        sys.stderr.flush()
        os.execve("/bin/sh", ["sh", "-c", command], os.environ | {OWN: os.environ["SLURM_JOB_ID"]})
