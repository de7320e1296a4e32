"""Warm starts: jobs that load models begin as forks of one process that has their libraries, which take seconds to import.

Each run of the workflow on one machine has such a process, the worker. A job's own process, which Snakemake starts as
ever, hands its work over to a fork of the worker, waits for it and ends as it did; if it is killed, so is the fork.
Linux only: on a Mac a process must not fork once the system's frameworks are loaded.
"""

import atexit
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

from ditscope.workflow.slots import gpus_to_choose_from

WORKER = "DITSCOPE_WARM"  # in the environment of jobs: the socket that the worker listens on
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # Snakemake sets them to a job's threads
LIBRARIES = ("torch", "transformers", "diffusers")  # not polars, which starts threads
PIPELINES = ("FluxPipeline", "StableDiffusion3Pipeline", "StableDiffusionXLPipeline")  # import torchao, most of all


# Snakemake's process ------------------------------------------------------------------------------------------------


def start_worker(workflow: Any, wanted: bool = True) -> None:
    """Let the jobs that this Snakemake process will start have a worker, if it is `wanted` and they run beside it.

    Not where jobs run on a cluster or in environments of their own. The worker imports nothing before its first job.
    """
    os.environ.pop(WORKER, None)  # of a workflow around this one
    beside = workflow.local_exec and not workflow.remote_exec and not workflow.deployment_settings.deployment_method
    if not (wanted and beside and sys.platform == "linux"):
        return
    folder = Path(tempfile.mkdtemp(prefix="ditscope-warm-"))  # closed to other users
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen(128)
        worker = subprocess.Popen(
            [sys.executable, "-m", "ditscope.workflow.warm", str(listener.fileno()), str(folder)],
            stdin=subprocess.PIPE,  # ends with this process, and the worker with it
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            env=os.environ | dict.fromkeys(THREADS, "1"),
        )
    os.environ[WORKER] = f"{folder}/socket"
    measure_forks(folder)
    atexit.register(stop, worker, folder)


def stop(worker: subprocess.Popen[bytes], folder: Path) -> None:
    """End the worker and remove its folder."""
    worker.kill()
    worker.wait()
    shutil.rmtree(folder, ignore_errors=True)


def measure_forks(folder: Path) -> None:
    """Let `benchmark:` measure the fork that does a job in place of the process that waits for it.

    Processor time and peak memory are those that the kernel counted, where they are more than what was sampled.
    """
    import psutil
    from snakemake import benchmark

    def known(pid: int) -> list[str]:
        with suppress(OSError):
            return (folder / str(pid)).read_text().split()
        return []

    class ForkTimer(benchmark.BenchmarkTimer):
        def _update_record(self) -> None:
            if self.main.pid == self.pid and (fork := known(self.pid)):
                self.main = psutil.Process(int(fork[0]))
            super()._update_record()

        def cancel(self) -> None:
            super().cancel()
            if len(fork := known(self.pid)) == 3:
                (folder / str(self.pid)).unlink()
                record, memory, seconds = self.bench_record, int(fork[1]) / 1024, float(fork[2])
                record.max_rss, record.cpu_time = max(record.max_rss or 0, memory), max(record.cpu_time, seconds)
                record.cpu_usage, record.data_collected = max(record.cpu_usage, 100 * seconds), True

    benchmark.BenchmarkTimer = ForkTimer


# A job's process ----------------------------------------------------------------------------------------------------


def hand_over() -> None:
    """Let a fork of the worker run this process's script, and end as it ends; return where there is no worker.

    An interrupt from the terminal reaches the fork by itself.
    """
    if not (address := os.environ.get(WORKER)):
        return
    work = {"pids": [os.getpid(), os.getppid()], "argv": sys.argv, "cwd": os.getcwd(), "environ": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as worker:
        try:
            worker.connect(address)
            socket.send_fds(worker, [json.dumps(work).encode()], [0, 1, 2])
            fork = int(worker.recv(64) or 0)
        except OSError:
            return
        if not fork:  # the worker could not import
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        answer = worker.recv(64)
    if not answer:
        with suppress(ProcessLookupError):
            os.kill(fork, signal.SIGKILL)
        raise SystemExit("Error: the process that jobs are forked from was killed, and this job with it")
    code = os.waitstatus_to_exitcode(int(answer))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code)


# The worker ---------------------------------------------------------------------------------------------------------


def preload() -> None:
    """Import what jobs that load models import, without starting a thread or a device: a fork could use neither.

    On a machine with NVIDIA GPUs the libraries alone: torchao asks for the GPU as it is imported.
    """
    for library in LIBRARIES:
        importlib.import_module(library)
    if not gpus_to_choose_from(os.environ):
        for name in PIPELINES:
            getattr(sys.modules["diffusers"], name)
    if len(os.listdir("/proc/self/task")) > 1 or sys.modules["torch"].cuda.is_initialized():
        raise SystemExit("no warm starts: a library has started a thread or a device as it was imported")
    gc.freeze()  # the forks' collections leave these objects' pages alone


class Worker:
    """Forks a process for each job that asks for one, and tells the process that waits for it how it ended."""

    def __init__(self, listener: socket.socket, folder: Path) -> None:
        self.listener, self.folder, self.preloaded = listener, folder, False
        self.jobs: dict[socket.socket, tuple[int, Path]] = {}  # process id, and the file for `measure_forks`
        self.wake, self.alarm = socket.socketpair()
        self.wake.setblocking(False)
        self.alarm.setblocking(False)
        self.selector = selectors.DefaultSelector()
        for source in (0, self.listener, self.wake):
            self.selector.register(source, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any] | None:
        """Work until standard input ends and all forks have ended; in the forks, give what to do."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.alarm.fileno())
        while self.jobs or self.listener.fileno() >= 0:
            for key, _ in self.selector.select():
                if key.fileobj == 0:  # Snakemake has ended, so its jobs will
                    self.selector.unregister(0)
                    self.selector.unregister(self.listener)
                    self.listener.close()
                elif key.fileobj is self.wake:
                    self.tell_ends()
                elif key.fileobj is self.listener:
                    if work := self.fork():
                        return work
                elif job := self.jobs.get(key.fileobj):  # the process that waits for this job was killed
                    self.selector.unregister(key.fileobj)
                    os.kill(job[0], signal.SIGKILL)
        return None

    def fork(self) -> dict[str, Any] | None:
        """Take one job and fork; in the fork, give what to do."""
        if not self.preloaded:
            preload()
            self.preloaded = True
        with suppress(OSError):  # nobody waits any more
            connection = self.listener.accept()[0]
            connection.settimeout(10)
            text, files, _, _ = socket.recv_fds(connection, 2**20, 3)
            if len(files) < 3:
                return None
            work = json.loads(text) | {"files": files}
            own, parent = work["pids"]
            report = self.folder / str(own if parent == os.getppid() else parent)  # what Snakemake has started
            if pid := os.fork():
                report.write_text(str(pid))
                self.jobs[connection] = pid, report
                self.selector.register(connection, selectors.EVENT_READ)
                for file in files:
                    os.close(file)
                return None
            connection.send(str(os.getpid()).encode())
            signal.set_wakeup_fd(-1)
            for opened in (self.selector, self.listener, self.wake, self.alarm, connection, *self.jobs):
                opened.close()
            return work
        return None

    def tell_ends(self) -> None:
        """Note what the forks that have ended took, and pass on how they ended."""
        self.wake.recv(4096)
        for connection, (pid, report) in list(self.jobs.items()):
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                report.write_text(f"{pid} {usage.ru_maxrss} {usage.ru_utime + usage.ru_stime:.2f}")
                del self.jobs[connection]
                with suppress(KeyError):
                    self.selector.unregister(connection)
                with suppress(OSError), connection:
                    connection.send(str(status).encode())


def run(work: dict[str, Any]) -> None:
    """Run a job's script in this fork as in the process that handed it over."""
    script = work["argv"][0]
    os.chdir(work["cwd"])
    for target, file in enumerate(work["files"]):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update({name: value for name, value in work["environ"].items() if name != WORKER})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    tempfile.tempdir = None  # chosen anew, from this environment
    sys.modules["numpy"].random.seed()  # as of a new process
    if (threads := os.environ.get(THREADS[0], "1")) != "1":
        from threadpoolctl import threadpool_limits

        sys.modules["torch"].set_num_threads(int(threads))
        threadpool_limits(int(threads))

    def own_traceback(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        while trace and trace.tb_frame.f_code.co_filename != script:
            trace = trace.tb_next
        sys.__excepthook__(kind, error.with_traceback(trace), trace)

    sys.excepthook = own_traceback
    sys.argv, sys.path[0] = work["argv"], str(Path(script).absolute().parent)
    main = types.ModuleType("__main__")
    main.__file__ = script
    sys.modules["__main__"] = main
    exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)


if __name__ == "__main__":
    directory = Path(sys.argv[2])
    if job := Worker(socket.socket(fileno=int(sys.argv[1])), directory).serve():
        run(job)
    else:
        shutil.rmtree(directory, ignore_errors=True)
