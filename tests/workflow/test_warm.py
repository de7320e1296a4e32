"""Warm starts: a job in a fork of the preloaded worker does, leaves and ends as in a process of its own."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ditscope.workflow import warm_worker
from workflow import ROOT

HAND_OVER = "from ditscope.workflow.warm import hand_over\nhand_over()\n"
START = """
import os, sys
from types import SimpleNamespace
from ditscope.workflow import warm_worker
local = {"local_exec": True, "remote_exec": False, "deployment_settings": SimpleNamespace(deployment_method=set())}
warm_worker.start_worker(SimpleNamespace(**local))
print(os.environ[warm_worker.WORKER], flush=True)
sys.stdin.read()
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != warm_worker.WORKER} | {
    "PYTHONPATH": str(ROOT / "scripts"),
    "OMP_NUM_THREADS": "1",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="warm starts are Linux's")


@pytest.fixture(scope="module")
def address():
    """The socket of a worker that lives as long as this module's tests."""
    with subprocess.Popen(
        [sys.executable, "-c", START], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as main:
        yield main.stdout.readline().strip()
        folder = Path(psutil.Process(main.pid).children()[0].cmdline()[-1])
        main.communicate()
    assert main.returncode == 0 and not folder.exists()


@pytest.fixture
def start(tmp_path, address):
    """Start a script as a job's process in a folder of its own, with the worker to hand it over to or without."""
    started = []

    def process(script: str, worker: str = address, **environment: str) -> subprocess.Popen:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        (tmp_path / "job.py").write_text(HAND_OVER + script)
        given = ENVIRONMENT | ({warm_worker.WORKER: worker} if worker else {}) | environment
        command = [sys.executable, str(tmp_path / "job.py")]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, cwd=folder, env=given, text=True, **pipes))
        return started[-1]

    yield process
    for one in started:
        one.kill()
        one.communicate()


@pytest.fixture
def both(start, address, tmp_path):
    """Run a script in both ways: exit code, standard output, standard error and rule.log, which must be the same."""

    def ends(script: str, **environment: str) -> tuple[int, str, str, str]:
        outcomes = []
        for number, worker in enumerate((address, "")):
            process = start(script, worker, **environment)
            texts = list(process.communicate("typed\n", timeout=200))
            log = tmp_path / str(number) / "rule.log"
            texts.append(log.read_text() if log.exists() else "")
            outcomes.append((process.returncode, *(re.sub(r"\d\d:\d\d:\d\d|\d+ MiB", "#", text) for text in texts)))
        for cold, forked in zip(*outcomes, strict=True):
            assert cold == forked
        return outcomes[0]

    return ends


def test_job_is_forked_from_a_process_that_has_the_libraries(start):
    script = "import os, sys; print('torch' in sys.modules, os.getpid())"
    process, cold = start(script), start(script, worker="")
    preloaded, pid = process.communicate(timeout=200)[0].split()
    assert preloaded == "True" and int(pid) != process.pid
    assert cold.communicate(timeout=60)[0].split() == ["False", str(cold.pid)]


ENDS = {
    "code": ("raise SystemExit(3)", 3),
    "line": ("raise SystemExit('Error: no prompts')", 1),
    "traceback": ("def inner():\n    raise ValueError('bad')\ninner()", 1),
    "kill": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "abort": ("import os\nos.abort()", -signal.SIGABRT),
    "exit": ("import atexit\natexit.register(print, 'last')\nprint('first')", 0),
    "syntax": ("for", 1),
}


@pytest.mark.parametrize("name", ENDS)
def test_job_ends_and_says_the_same(both, name):
    script, code = ENDS[name]
    assert both(script)[0] == code


@pytest.mark.parametrize("threads", ["1", "2"])
def test_job_sees_the_same_of_its_process(both, threads):
    script = """
import json, os, pathlib, signal, sys, tempfile
import torch
from threadpoolctl import threadpool_info
signals = [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)]
environment = {name: value for name, value in os.environ.items() if name != "DITSCOPE_WARM"}
opened = [os.readlink(f"/proc/self/fd/{n}").split(":")[0] for n in range(9) if os.path.exists(f"/proc/self/fd/{n}")]
seen = [sys.stdin.readline(), environment, os.getcwd().rpartition("/")[0], sys.argv, sys.path[:2], __name__, __file__]
seen += [signals, tempfile.gettempdir(), torch.get_num_threads(), opened, sys.flags.interactive]
pools = {pool["num_threads"] for pool in threadpool_info()}
seen += [sys.stdout.line_buffering, sorted(pools), os.getpgrp(), os.getsid(0), os.nice(0)]
seen += [pathlib.Path(sys.modules["__main__"].__file__).name, torch.__config__.parallel_info().splitlines()[:2]]
print(json.dumps(seen))
"""
    code, output, *_ = both(script, **dict.fromkeys(warm_worker.THREADS, threads), ANY="é")
    assert code == 0
    seen = json.loads(output)
    assert seen[0] == "typed\n" and seen[1]["ANY"] == "é" and seen[9] == int(threads)


def test_forks_draw_different_numbers(start):
    script = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    first, second = (start(script).communicate(timeout=120)[0].split() for _ in range(2))
    assert not set(first) & set(second)


@pytest.mark.parametrize("failing", [False, True])
def test_log_is_the_same(both, failing):
    script = f"""
from types import SimpleNamespace
from ditscope.workflow.job import job, log
params, config = SimpleNamespace(items=dict), {{"experiment": "x"}}
rule = SimpleNamespace(rule="any", log=["rule.log"], resources={{}}, output=[], params=params, config=config)
with job(rule, warm=True):
    log.info("so far")
    if {failing}:
        raise ValueError("bad")
"""
    code, _, errors, logged = both(script)
    assert code == failing and "so far" in errors
    assert "so far" in logged and ("Traceback" in logged) == failing


SLEEP = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(100)\n"


def forked(process: subprocess.Popen) -> psutil.Process:
    """The fork that does the work of a process whose script is SLEEP."""
    fork = psutil.Process(int(process.stdout.readline()))
    assert fork.pid != process.pid
    return fork


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_killed_process_takes_its_fork_along(start, sent):
    process = start(SLEEP)
    fork = forked(process)
    process.send_signal(sent)
    assert process.wait() == -sent
    assert psutil.wait_procs([fork], timeout=10)[1] == []


def test_killed_fork_and_killed_supervisor_fail_the_job(start):
    process, other = start(SLEEP), start(SLEEP)
    fork, orphan = forked(process), forked(other)
    fork.kill()
    assert process.wait(10) == -signal.SIGKILL
    orphan.parent().kill()
    assert other.wait(10) == 1 and "was killed" in other.stderr.read()
    assert psutil.wait_procs([orphan], timeout=10)[1] == []


def test_interrupted_fork_fails_the_job(start):
    process = start(SLEEP)
    forked(process).send_signal(signal.SIGINT)
    assert process.wait(20) != 0 and process.stderr.read().endswith("\nKeyboardInterrupt\n")


def test_interrupt_of_the_waiting_process_leaves_the_fork_its_time(start):
    script = SLEEP.replace("time.sleep(100)", "time.sleep(1); print('done')")
    process = start(script)
    forked(process)
    process.send_signal(signal.SIGINT)  # from a terminal the fork gets it as well
    assert process.communicate(timeout=20)[0] == "done\n" and process.returncode == 0


def test_without_a_worker_jobs_do_their_own_work(start, tmp_path):
    process = start("import os; print(os.getpid())", str(tmp_path / "nothing"))
    assert int(process.communicate(timeout=60)[0]) == process.pid


def test_fork_has_the_resident_set_of_a_process_that_imported(start):
    script = """
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from pathlib import Path
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if "RssFile" in line).split()[1])
"""
    forked, cold = (int(start(script, *worker).communicate(timeout=200)[0]) for worker in ((), ("",)))
    assert abs(forked - cold) < 0.1 * cold


def test_sampled_images_are_the_same_bytes(start, address, tmp_path):
    script = f"""
import os
from pathlib import Path
folder = Path.cwd()
os.chdir({str(ROOT)!r})
from ditscope.cli import main
options = ["--model", "shapes-flux", "--prompts", "prompts/tiny.csv", "--images", f"{{folder}}/images.tar"]
raise SystemExit(main(["generate", *options]))
"""
    for worker in (address, ""):
        process = start(script, worker)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    first, second = ((tmp_path / number / "images.tar").read_bytes() for number in "01")
    assert first == second and len(first) > 10_000


SNAKEFILE = f"""
import sys
sys.path.insert(0, {str(ROOT / "scripts")!r})
from ditscope.workflow.orphans import announce_workflow
from ditscope.workflow.staleness import prefer_this_library
from ditscope.workflow.warm_worker import start_worker
announce_workflow()
prefer_this_library()
config["experiment"] = "x"
onstart:
    start_worker(workflow)
rule waits:
    input: "measured"
    output: "waited"
    log: "waits.log"
    script: "waits.py"
rule measured:
    output: "measured"
    log: "measured.log"
    benchmark: "measured.tsv"
    script: "measured.py"
"""
MEASURED = """
import os, resource, sys, time
from pathlib import Path
from ditscope.workflow.job import job
with job(snakemake, warm=True):
    block = bytearray(b"x") * (600 << 20)
    while time.process_time() < 1.5:
        pass
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seen = ["torch" in sys.modules, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime]
    Path(snakemake.output[0]).write_text(" ".join(map(str, seen)))
"""
WAITS = """
import os, time
from pathlib import Path
from ditscope.workflow.job import job
with job(snakemake, warm=True):
    Path("pid").write_text(str(os.getpid()))
    time.sleep(100)
"""


def test_workflow_measures_its_jobs_and_takes_them_along(tmp_path):
    for name, text in (("Snakefile", SNAKEFILE), ("measured.py", MEASURED), ("waits.py", WAITS)):
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    with open(tmp_path / "said", "w") as said:
        main = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=said, stderr=said)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert main.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.1)
    (worker,) = (p for p in psutil.Process(main.pid).children() if warm_worker.BEGIN in p.cmdline())
    folder, processes = worker.cmdline()[-1], psutil.Process(main.pid).children(recursive=True)
    assert Path(folder).stat().st_mode & 0o77 == 0
    assert int((tmp_path / "pid").read_text()) in [process.pid for process in worker.children(recursive=True)]
    main.kill()
    main.wait()
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    assert not Path(folder).exists()

    header, row = (tmp_path / "measured.tsv").read_text().splitlines()
    record = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    preloaded, memory, seconds = (tmp_path / "measured").read_text().split()
    assert preloaded == "True"
    assert float(memory) - 0.01 < float(record["max_rss"]) < 1.1 * float(memory) and float(memory) > 600
    assert 1.5 <= float(seconds) <= 0.01 + float(record["cpu_time"]) < float(seconds) + 2


def test_no_worker_where_jobs_run_elsewhere(monkeypatch):
    here = {"local_exec": True, "remote_exec": False, "deployment_settings": SimpleNamespace(deployment_method=set())}
    conda = SimpleNamespace(deployment_method={"conda"})
    for elsewhere in ({"local_exec": False}, {"remote_exec": True}, {"deployment_settings": conda}):
        monkeypatch.setenv(warm_worker.WORKER, "of another run")
        warm_worker.start_worker(SimpleNamespace(**here | elsewhere))
        assert warm_worker.WORKER not in os.environ
    warm_worker.start_worker(SimpleNamespace(**here), wanted=False)
    assert warm_worker.WORKER not in os.environ


def test_on_a_machine_with_gpus_no_library_starts_cuda():
    code = """
import sys
import torch
def asked(*arguments):
    raise SystemExit("a library starts CUDA as it is imported")
torch._C._cuda_getDeviceCount = torch._C._cuda_init = torch._C._cuda_getDevice = asked
torch.cuda._device_count_nvml = lambda: 1
from ditscope.workflow.warm_worker import preload
preload()
assert "diffusers" in sys.modules and "torchao" not in sys.modules
"""
    environment = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "0", "OPENBLAS_NUM_THREADS": "1", warm_worker.ASK_DRIVER: "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.hardware
@pytest.mark.skipif(not list(Path("/dev").glob("nvidia[0-9]*")), reason="no NVIDIA GPU")
def test_fork_computes_on_the_gpu_that_it_chose(both):
    script = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[-1]
import torch
from torch.utils._triton import has_triton
print(torch.cuda.device_count(), torch.ones(3, device="cuda").sum().item(), has_triton())
"""
    code, output, *_ = both(script)
    assert code == 0 and output.startswith("1 3.0 ")


def test_scripts_that_import_their_stage_late_start_warm():
    for script in sorted((ROOT / "scripts").glob("*.py")):
        blocks = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.With)]
        late = any(isinstance(node, ast.ImportFrom) for block in blocks for node in ast.walk(block))
        wanted = late and script.name != "download_model.py"  # it waits for the network, and imports no torch
        assert wanted == ("job(snakemake, warm=True)" in script.read_text()), script.name
