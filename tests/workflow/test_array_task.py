"""What a task of a job array runs; `test_slurm.py` shows it on a real SLURM."""

import base64
import json
import zlib

import pytest
from snakemake.exceptions import WorkflowError
from snakemake_executor_plugin_slurm_jobstep import parse_array_execs

from ditscope.workflow.array_task import OWN, own_command

COMMANDS = {"6": "cd /a && snakemake --target-jobs 'b:shard=00002'", "7": "echo ü"}
PACKED = {task: zlib.compress(command.encode(), level=9).hex() for task, command in COMMANDS.items()}
PAYLOAD = base64.b64encode(json.dumps(PACKED).encode()).decode()
OPTION = "--slurm-jobstep-array-execs"
SNAKEMAKE = ["--snakefile", "Snakefile", "--target-jobs", "b:shard=00001", "--executor", "slurm-jobstep", "--jobs", "1"]


def variables(task: str) -> dict[str, str]:
    """What SLURM tells a task of an array of 5-7."""
    return {"SLURM_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MIN": "5"}


@pytest.mark.parametrize("passed", [[f"{OPTION}={PAYLOAD}"], [OPTION, PAYLOAD]])
@pytest.mark.parametrize("task", ["5", "6", "7"])
def test_a_task_runs_its_own_command_and_the_first_goes_on(task, passed):
    assert own_command([*SNAKEMAKE, *passed], variables(task)) == COMMANDS.get(task)


def test_the_payload_is_the_executors():
    assert parse_array_execs(PAYLOAD) == PACKED


def test_lost_commands_stop_a_task_before_it_writes_what_is_the_firsts():
    with pytest.raises(WorkflowError, match="slurm-array-limit"):
        own_command(SNAKEMAKE, variables("6"))
    assert own_command(SNAKEMAKE, variables("5")) is None


def test_elsewhere_there_is_nothing_to_do():
    assert own_command(SNAKEMAKE, {}) is None
    assert own_command(SNAKEMAKE, variables("6") | {OWN: "12"}) is None, "a Snakemake that a task's command starts"
    assert own_command(["--profile", "local"], variables("6")) is None, "a whole study as a task"
    with pytest.raises(WorkflowError):
        own_command(SNAKEMAKE, variables("6") | {OWN: "11"})
