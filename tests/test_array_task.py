"""What a task of a job array runs; `test_slurm.py` shows it on a real SLURM."""

import base64
import json
import zlib

import pytest
from snakemake_executor_plugin_slurm_jobstep import parse_array_execs

from ditscope.array_task import own_command

COMMANDS = {"2": "cd /a && snakemake --target-jobs 'b:shard=00002'", "3": "echo ü"}
PACKED = {task: zlib.compress(command.encode(), level=9).hex() for task, command in COMMANDS.items()}
PAYLOAD = base64.b64encode(json.dumps(PACKED).encode()).decode()
OPTION = "--slurm-jobstep-array-execs"
SNAKEMAKE = ["--snakefile", "Snakefile", "--target-jobs", "b:shard=00001", "--attempt", "1"]


@pytest.mark.parametrize("passed", [[f"{OPTION}={PAYLOAD}"], [OPTION, PAYLOAD]])
@pytest.mark.parametrize("task", ["1", "2", "3"])
def test_a_task_runs_its_own_command_and_the_first_goes_on(task, passed):
    assert own_command([*SNAKEMAKE, *passed], {"SLURM_ARRAY_TASK_ID": task}) == COMMANDS.get(task)


def test_the_payload_is_the_executors():
    assert parse_array_execs(PAYLOAD) == PACKED


def test_elsewhere_there_is_nothing_to_do():
    assert own_command(SNAKEMAKE, {}) is None
    assert own_command(SNAKEMAKE, {"SLURM_ARRAY_TASK_ID": "2"}) is None
