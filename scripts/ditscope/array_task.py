"""A task of a SLURM job array runs its own command, and nothing of another task's.

snakemake-executor-plugin-slurm 2.8.0 (its issue 447) starts every task of an array with a Snakemake whose target is the
*first* task's job, and that one runs the task's own command in a process below it. Afterwards it looks for the first
task's outputs: it touches them, gives up where they are not there within `latency-wait`, and removes them where its own
command failed.
"""

import argparse
import base64
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence


def own_command(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """The shell command of this task, where `arguments` are those of an array's Snakemake; None for the first task.

    The executor passes the commands of all tasks but the first: base64 of JSON, by task, of hexadecimal zlib.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--slurm-jobstep-array-execs")
    passed = parser.parse_known_args(arguments)[0].slurm_jobstep_array_execs
    if not passed:
        return None
    packed = json.loads(base64.b64decode(passed)).get(environment["SLURM_ARRAY_TASK_ID"])
    return packed and zlib.decompress(bytes.fromhex(packed)).decode()


def go_on_as_own_task() -> None:
    """Replace this process by the task's own command; does nothing anywhere else. Call it before the rules are read."""
    if command := own_command(sys.argv[1:], os.environ):
        sys.stderr.flush()
        os.execv("/bin/sh", ["sh", "-c", command])
