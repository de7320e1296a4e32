"""Warm starts: a job that loads a model is a fork of one process that has the libraries, which take seconds to import.

Every run on one machine has such a process, the worker. A job's own process, which Snakemake starts as ever, hands its
work over to a fork of the worker (`warm.py`), waits for it and ends as it ended; if it is killed, so is the fork. Linux
only: on a Mac a process must not fork after the system's frameworks were loaded.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from ditscope.workflow.slots import gpus_to_choose_from
from ditscope.workflow.warm import WORKER

BEGIN = "from ditscope.workflow.warm_worker import main; main()"
ASK_DRIVER = "PYTORCH_NVML_BASED_CUDA_CHECK"  # whether there is a GPU, so that asking does not start CUDA
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # Snakemake sets them to a job's threads
LIBRARIES = ("torch", "transformers", "diffusers")  # not polars, which starts threads
PIPELINES = ("FluxPipeline", "StableDiffusion3Pipeline", "StableDiffusionXLPipeline")  # with torchao, scipy, sklearn
POPULATE_READ = 22  # of madvise(2), since Linux 5.14


# Snakemake's process


def start_worker(workflow: Any, wanted: bool = True) -> None:
    """Give the jobs of this Snakemake process a worker, if it is `wanted` and they run here and in this environment.

    The worker imports nothing before the first job asks for it, and ends with this process.
    """
    os.environ.pop(WORKER, None)  # of a workflow around this one
    here = workflow.local_exec and not workflow.remote_exec and not workflow.deployment_settings.deployment_method
    if not (wanted and here and sys.platform == "linux"):
        return
    folder = Path(tempfile.mkdtemp(prefix="ditscope-warm-", dir="/tmp"))  # closed to others; a socket's path is short
    os.environ[WORKER] = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.environ[WORKER])
        listener.listen(128)
        worker = subprocess.Popen(
            [sys.executable, "-c", BEGIN, str(listener.fileno()), str(folder)],
            stdin=subprocess.PIPE,  # closed when this process ends, however it does
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            env=os.environ | dict.fromkeys(THREADS, "1") | {ASK_DRIVER: "1"},
        )
    atexit.register(stop, worker, folder)
    measure_forks(folder)


def stop(worker: subprocess.Popen[bytes], folder: Path) -> None:
    """End the worker; jobs that still run watch this process themselves (`orphans.py`)."""
    try:
        worker.communicate(timeout=1)
    except subprocess.TimeoutExpired:  # it imports, or has jobs
        worker.kill()
        worker.wait()
    shutil.rmtree(folder, ignore_errors=True)


def measure_forks(folder: Path) -> None:
    """Let `benchmark:` measure a job's fork, not the process that waits for it.

    Processor time and peak memory are the kernel's, where those are more than what was sampled.
    """
    import psutil
    from snakemake import benchmark

    class ForkTimer(benchmark.BenchmarkTimer):
        main: psutil.Process

        def fork(self) -> list[str]:
            """Process id, then, once it has ended, peak memory in kB and processor seconds of the job's fork."""
            with suppress(OSError):
                return (folder / str(self.pid)).read_text().split()
            return []

        def _update_record(self) -> None:
            if self.main.pid == self.pid and (fork := self.fork()):
                self.main = psutil.Process(int(fork[0]))
            super()._update_record()

        def cancel(self) -> None:
            super().cancel()
            if len(fork := self.fork()) == 3:
                (folder / str(self.pid)).unlink()
                record, memory, seconds = self.bench_record, int(fork[1]) / 1024, float(fork[2])
                record.max_rss, record.cpu_time = max(record.max_rss or 0, memory), max(record.cpu_time, seconds)
                record.cpu_usage, record.data_collected = max(record.cpu_usage, 100 * seconds), True

    benchmark.BenchmarkTimer = ForkTimer


# The worker


def preload() -> list[tuple[int, int]]:
    """Import what jobs that load models import, without starting a thread or a device: a fork could use neither.

    On a machine with NVIDIA GPUs only the libraries: torchao starts CUDA as it is imported. Returns what
    `libraries_in_memory` then gives.
    """
    for library in LIBRARIES:
        importlib.import_module(library)
    for name in () if gpus_to_choose_from(os.environ) else PIPELINES:
        getattr(sys.modules["diffusers"], name)
    if len(os.listdir("/proc/self/task")) > 1 or sys.modules["torch"].cuda.is_initialized():
        raise SystemExit("no warm starts: a library started a thread or a device as it was imported")
    gc.freeze()  # garbage collection in the forks leaves these objects' pages alone
    return libraries_in_memory()


def libraries_in_memory() -> list[tuple[int, int]]:
    """Address and bytes of each run of pages of files that this process has touched: fork leaves these out.

    A fork that asks for them has the resident set of a process that imported for itself.
    """
    import numpy as np

    runs: list[tuple[int, int]] = []
    page = os.sysconf("SC_PAGE_SIZE")
    with open("/proc/self/pagemap", "rb") as pages:  # proc(5): 8 bytes per page, the highest bit of those in memory
        for line in Path("/proc/self/maps").read_text().splitlines():
            addresses, _, _, _, inode, *_ = line.split()
            if inode != "0":
                first, last = (int(address, 16) // page for address in addresses.split("-"))
                pages.seek(8 * first)
                present = np.frombuffer(pages.read(8 * (last - first)), np.int64) < 0
                edges = np.flatnonzero(np.diff(present, prepend=False, append=False)).reshape(-1, 2)
                runs += [((first + int(a)) * page, int(b - a) * page) for a, b in edges]
    return runs


def main() -> None:
    """Serve jobs until Snakemake ends; in the forks, do a job."""
    listener, folder, snakemake = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), os.getppid()
    if served := serve(listener):
        connection, libraries = served
        run(supervise(connection, folder, snakemake), libraries)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def serve(listener: socket.socket) -> tuple[socket.socket, list[tuple[int, int]]] | None:
    """Fork for each connection until standard input ends; returns in the forks: the connection, and `preload()`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal: the jobs' business
    sources: list[Any] = [0, listener]
    libraries = None
    while 0 not in select.select(sources, [], [])[0]:
        libraries = libraries or preload()
        connection = listener.accept()[0]
        if not os.fork():
            listener.close()
            return connection, libraries
        connection.close()
        reap(os.WNOHANG)
    reap()
    return None


def reap(options: int = 0) -> None:
    """Wait for this process's children, so that what they took counts as what the run took."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            continue


def supervise(connection: socket.socket, folder: Path, snakemake: int) -> dict[str, Any]:
    """Fork once more for a job; returns in that fork, with its work. Here, pass on how it ends to the job's process.

    If that process ends first, so does the fork.
    """
    text, files, _, _ = socket.recv_fds(connection, 2**20, 3)
    if not text:  # that process was killed
        os._exit(0)
    work = json.loads(text)
    if not (fork := os.fork()):
        return work | {"files": files, "connection": connection}
    own, parent = work["pids"]
    report = folder / str(own if parent == snakemake else parent)  # what Snakemake has started, for `measure_forks`
    report.write_text(str(fork))
    Thread(target=end_with, args=(connection, fork), daemon=True).start()
    _, status, usage = os.wait4(fork, 0)
    with suppress(OSError):  # nobody is there any more
        report.write_text(f"{fork} {usage.ru_maxrss} {usage.ru_utime + usage.ru_stime:.2f}")
        connection.send(str(status).encode())
    os._exit(0)


def end_with(connection: socket.socket, fork: int) -> None:
    """Kill a job's fork once the process that waits for it has ended."""
    connection.recv(1)
    with suppress(ProcessLookupError):
        os.kill(fork, signal.SIGKILL)


def run(work: dict[str, Any], libraries: list[tuple[int, int]]) -> None:
    """Run a job's script in this fork as the process would that has handed it over."""
    madvise = ctypes.CDLL(None).madvise
    for address, size in libraries:
        madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), POPULATE_READ)
    with work["connection"] as connection:
        try:
            connection.send(str(os.getpid()).encode())
        except OSError:  # that process was killed
            os._exit(1)
    script = work["argv"][0]
    os.chdir(work["cwd"])
    for limit, values in work["limits"]:  # as of `ulimit`
        resource.setrlimit(limit, values)
    for target, file in enumerate(work["files"]):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update({name: value for name, value in work["environ"].items() if name != WORKER})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    tempfile.tempdir = None  # to be chosen anew, from this environment
    sys.modules["numpy"].random.seed()  # unlike other forks
    sys.modules["torch"].default_generator.seed()
    if (threads := int(os.environ.get(THREADS[0], "1"))) != 1:
        from threadpoolctl import threadpool_limits

        sys.modules["torch"].set_num_threads(threads)
        threadpool_limits(threads)

    def own_traceback(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        while trace and trace.tb_frame.f_code.co_filename != script:
            trace = trace.tb_next
        sys.__excepthook__(kind, error.with_traceback(trace), trace)

    sys.excepthook = own_traceback
    sys.argv, sys.path[0] = work["argv"], str(Path(script).absolute().parent)
    runpy.run_path(script, run_name="__main__")
