"""GPU slots: jobs on one machine never see the same GPU unless asked, and a killed job gives its GPU back."""

import ast
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ditscope.core.errors import InputError
from ditscope.models import hardware
from ditscope.workflow import slots
from workflow import ROOT

SCRIPTS = str(Path(slots.__file__).parents[2])
HOLD = """
import sys
sys.path.insert(0, {scripts!r})
from pathlib import Path
from ditscope.workflow.slots import gpu_slots
with gpu_slots({count}, Path({folder!r}), {memory_mb}) as chosen:
    assert "torch" not in sys.modules
    print(",".join(chosen), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def outside_of_schedulers(monkeypatch):
    for name in (*hardware.SCHEDULERS, hardware.VISIBLE, slots.ORDER, slots.SHARE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start(tmp_path):
    """Start jobs in processes of their own that hold GPUs until their standard input ends."""
    running = []

    def job(count: int = 1, visible: str = "0,1", memory_mb: int = 0, **environment: str) -> subprocess.Popen:
        code = HOLD.format(scripts=SCRIPTS, count=count, folder=str(tmp_path), memory_mb=memory_mb)
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {slots.VISIBLE: visible} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield job
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def seen(process: subprocess.Popen) -> str:
    return process.stdout.readline().strip()


def is_waiting(process: subprocess.Popen) -> bool:
    """Whether a job has got no GPU after a second."""
    ready, _, _ = select.select([process.stdout], [], [], 1)
    return not ready and process.poll() is None


def test_jobs_see_different_gpus_and_the_next_one_waits(start):
    first, second = start(), start()
    assert {seen(first), seen(second)} == {"0", "1"}
    third = start()
    assert is_waiting(third)
    second.stdin.close()
    assert seen(third) in {"0", "1"}


def test_killed_job_gives_its_gpu_back(start):
    first = start(visible="5")
    assert seen(first) == "5"
    second = start(visible="5")
    assert is_waiting(second)
    first.send_signal(signal.SIGKILL)
    assert seen(second) == "5"


def test_killed_waiting_job_lets_the_next_one_pass(start):
    first = start(visible="0,1")
    assert seen(first) == "0"
    greedy = start(count=2)
    assert is_waiting(greedy)
    later = start()
    assert is_waiting(later), "GPU 1 is kept for the job that came first"
    greedy.kill()
    assert seen(later) == "1"


def test_jobs_of_several_gpus_do_not_block_each_other(start):
    jobs = [start(count=2, visible="0,1,2") for _ in range(3)]
    for _ in range(3):
        holder = first_ready(jobs)
        assert len(set(seen(holder).split(","))) == 2
        holder.stdin.close()
        jobs.remove(holder)


def first_ready(jobs: list[subprocess.Popen]) -> subprocess.Popen:
    """Wait for one of the jobs to get its GPUs."""
    ready, _, _ = select.select([job.stdout for job in jobs], [], [], 30)
    assert ready, "no job got its GPUs"
    return next(job for job in jobs if job.stdout is ready[0])


@pytest.fixture
def sharing(start, tmp_path):
    """Start jobs that may share GPUs of 10,000 MiB (10,485 MB), as an nvidia-smi of the test's own lists them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    lines = "".join(f"{i}, GPU-{i}, 10000\n" for i in range(2))
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{lines}'\n".replace("\n'", "'"))
    (folder / "nvidia-smi").chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"

    def job(memory_mb: int, most: int = 2, **options: str) -> subprocess.Popen:
        return start(memory_mb=memory_mb, PATH=path, DITSCOPE_JOBS_PER_GPU=str(most), **options)

    return job


def test_gpus_are_shared_when_asked_and_idle_ones_first(sharing):
    jobs = [sharing(4000) for _ in range(4)]
    assert sorted(map(seen, jobs)) == ["0", "0", "1", "1"]
    assert is_waiting(sharing(4000)), "two a GPU were asked for"


def test_as_many_share_a_gpu_as_fit_into_its_memory(sharing):
    jobs = [sharing(4000, most=9, visible="GPU-1") for _ in range(2)]
    assert [seen(job) for job in jobs] == ["GPU-1"] * 2
    third = sharing(4000, most=9, visible="GPU-1")
    assert is_waiting(third), "12,000 of 10,485 MB"
    jobs[0].stdin.close()
    assert seen(third) == "GPU-1"


def test_a_job_that_fits_nowhere_is_alone(sharing):
    assert seen(sharing(99_000, visible="0")) == "0"
    assert is_waiting(sharing(10, visible="0"))


@pytest.mark.parametrize(("first", "second"), [(0, 4000), (4000, 0)])
def test_a_job_that_does_not_say_what_it_takes_shares_with_nobody(sharing, first, second):
    alone = sharing(first, visible="0")
    assert seen(alone) == "0"
    other = sharing(second, visible="0")
    assert is_waiting(other)
    alone.stdin.close()
    assert seen(other) == "0"


def test_a_gpu_of_unknown_memory_is_not_shared(sharing):
    assert seen(sharing(1, visible="MIG-7")) == "MIG-7"
    assert is_waiting(sharing(1, visible="MIG-7"))


def test_more_gpus_than_there_are_takes_those(start):
    assert seen(start(count=8, visible="3,4")) == "3,4"


def test_environment_is_set_inside_and_restored_after(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "gpus_to_choose_from", lambda environment: ["0", "1"])
    with slots.gpu_slots(1, tmp_path) as chosen:
        assert os.environ[slots.VISIBLE] == chosen[0] == "0"
        assert os.environ[slots.ORDER] == "PCI_BUS_ID"
        assert (tmp_path / "0.0.lock").read_text() == f"{os.getpid()} 0\n"
    assert slots.VISIBLE not in os.environ and slots.ORDER not in os.environ


def test_user_s_order_of_devices_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(slots.VISIBLE, "GPU-b,GPU-a")
    with slots.gpu_slots(2, tmp_path):
        assert os.environ[slots.VISIBLE] == "GPU-b,GPU-a"
        assert slots.ORDER not in os.environ


def test_nothing_happens_without_a_gpu_or_a_request(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "gpus_to_choose_from", lambda environment: [])
    before = dict(os.environ)
    for count in (0, 1):
        with slots.gpu_slots(count, tmp_path) as chosen:
            assert chosen == [] and dict(os.environ) == before
    assert not list(tmp_path.iterdir())


def test_scheduler_s_own_choice_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv(slots.VISIBLE, "1")
    with slots.gpu_slots(1, tmp_path) as chosen:
        assert chosen == ["1"] and os.environ[slots.VISIBLE] == "1"
    assert not list(tmp_path.iterdir()), "two jobs of a scheduler may both call their own GPU 0: no lock may join them"


def test_jobs_share_out_a_scheduler_s_allocation(start):
    jobs = [start(SLURM_JOB_ID="17") for _ in range(2)]
    assert sorted(map(seen, jobs)) == ["0", "1"]


@pytest.mark.parametrize(
    "environment, devices",
    [
        ({}, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": " 4, 5"}, ["4", "5"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"SLURM_JOB_ID": "17"}, []),
        ({"SLURM_JOB_ID": "17", "CUDA_VISIBLE_DEVICES": "2"}, ["2"]),
    ],
)
def test_gpus_to_choose_from(environment, devices, tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert slots.gpus_to_choose_from(environment, tmp_path) == devices


@pytest.mark.parametrize("text", ["0", "two", "-1", ""])
def test_bad_number_of_jobs_a_gpu_is_refused(text):
    with pytest.raises(InputError, match="DITSCOPE_JOBS_PER_GPU"):
        slots.jobs_per_gpu({slots.SHARE: text})


def scripts_of_gpu_rules() -> list[Path]:
    """The scripts of rules that ask for a GPU."""
    scripts = []
    for file in sorted((ROOT / "rules").glob("*.smk")):
        for body in re.split(r"^(?:rule|checkpoint) \w+:", file.read_text(), flags=re.M):
            script = re.search(r'script:\s+"([^"]+)"', body)
            if script and re.search(r"^        gpu=", body, flags=re.M):
                scripts.append((file.parent / script[1]).resolve())
    return scripts


def test_scripts_choose_their_gpu_before_torch_is_imported():
    scripts = scripts_of_gpu_rules()
    assert len(scripts) > 5
    imports = [
        ast.unparse(node)
        for script in scripts
        for node in ast.parse(script.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    check = "import sys; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*imports, check])], env=os.environ | {"PYTHONPATH": SCRIPTS}
    )
    assert done.returncode == 0
