"""GPUs of one machine, shared out among its jobs by file locks; no torch, so that a job chooses before CUDA starts.

A job holds one lock file for each GPU that it may see. The kernel drops a process's locks however it ends (flock), so
a killed job leaves nothing to clean up. The file says who holds it and how much memory of the GPU it asked for; several
jobs share a GPU where the user lets them and these sums fit into it.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from ditscope.core.errors import InputError
from ditscope.models.hardware import ORDER, SHARE, VISIBLE, gpu_memory_mb, gpus_to_choose_from, scheduled

log = logging.getLogger(__name__)

POLL_S = 0.2


@contextmanager
def gpu_slots(count: int, folder: Path | None = None, memory_mb: int = 0) -> Iterator[list[str]]:
    """Show this process and its children `count` GPUs that no other job holds, waiting until they are free.

    Yields the GPUs as written to CUDA_VISIBLE_DEVICES; none, and the environment untouched, where no GPU is asked for,
    where there is none, or where a scheduler has given just as many. A list that the user or a scheduler set is chosen
    from. With DITSCOPE_JOBS_PER_GPU=N up to N jobs share a GPU, those that say what they take of its memory
    (`memory_mb`) and as many as fit into it; a job that does not say has its GPUs to itself. Enter this before torch is
    imported: CUDA reads the variable once.
    """
    devices = gpus_to_choose_from(os.environ) if count > 0 else []
    if count > len(devices) > 0:
        log.warning("%d GPUs asked for, %d here: taking those", count, len(devices))
    if not devices or (scheduled(os.environ) and len(devices) <= count):
        yield devices
        return
    where, most = folder or lock_folder(), jobs_per_gpu(os.environ)
    with reserved(devices, min(count, len(devices)), where, most, memory_mb) as chosen:
        before = {name: os.environ.get(name) for name in (VISIBLE, ORDER)}
        if before[VISIBLE] is None:
            os.environ[ORDER] = "PCI_BUS_ID"  # the order of nvidia-smi, and the same in every process
        os.environ[VISIBLE] = ",".join(chosen)
        try:
            yield chosen
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def jobs_per_gpu(environment: Mapping[str, str]) -> int:
    """How many jobs may share a GPU: one, unless the user asks for more."""
    text = environment.get(SHARE, "1")
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"{SHARE}={text}: give a whole number from 1")
    return int(text)


def lock_folder() -> Path:
    """Where this user's jobs on this machine, of whichever study, meet; a scheduler's job has a place of its own."""
    folder = Path(f"/tmp/ditscope-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to somebody else; remove it, it is where jobs agree on their GPUs")
    if job := scheduled(os.environ):
        folder = folder / job
        folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def reserved(
    devices: Sequence[str], count: int, folder: Path, jobs: int = 1, memory_mb: int = 0
) -> Iterator[list[str]]:
    """Hold the locks of `count` of `devices`, each with at most `jobs` holders; first come, first served.

    Whoever waits holds `queue.lock`: later jobs cannot overtake one that needs several GPUs, two that each hold a part
    of what they need cannot block each other, and nobody else takes memory that was found free.
    """
    with ExitStack() as held:
        with take(folder / "queue.lock"):
            chosen: list[str] = []
            waited = False
            while True:
                others = {device: holders(folder, device, jobs) for device in devices}
                for device in sorted(
                    devices, key=lambda device: len(others[device])
                ):  # an idle GPU before a shared one
                    if len(chosen) < count and device not in chosen and fits(device, others[device], memory_mb):
                        for slot in range(jobs):
                            if file := try_take(slot_file(folder, device, slot), memory_mb):
                                held.enter_context(file)
                                chosen.append(device)
                                break
                if len(chosen) == count:
                    break
                if not waited:
                    log.info("waiting for %d of %d GPUs: other jobs hold them", count - len(chosen), len(devices))
                    waited = True
                time.sleep(POLL_S)
        yield sorted(chosen, key=list(devices).index)


def slot_file(folder: Path, device: str, slot: int) -> Path:
    """The lock file of one place on a GPU."""
    return folder / f"{device.replace('/', '_')}.{slot}.lock"


def holders(folder: Path, device: str, jobs: int) -> list[int]:
    """Megabytes that each holder of a GPU asked for; 0 for one that did not say."""
    asked = []
    for slot in range(jobs):
        path = slot_file(folder, device, slot)
        if file := try_take(path):
            file.close()
        else:
            words = path.read_text().split()
            asked.append(int(words[1]) if len(words) > 1 else 0)
    return asked


def fits(device: str, others: Sequence[int], memory_mb: int) -> bool:
    """Whether a job of this memory may join the holders of a GPU; alone it always may."""
    if not others:
        return True
    return bool(memory_mb) and all(others) and sum(others) + memory_mb <= gpu_memory_mb().get(device, 0)


def try_take(path: Path, memory_mb: int = 0) -> IO[str] | None:
    """Lock a file, or None where another holds it; who holds it, and for how much, is in it. Closing gives it back."""
    try:
        return take(path, fcntl.LOCK_EX | fcntl.LOCK_NB, memory_mb)
    except BlockingIOError:
        return None


def take(path: Path, operation: int = fcntl.LOCK_EX, memory_mb: int = 0) -> IO[str]:
    """Lock a file, waiting for it unless `operation` says otherwise."""
    file = path.open("a")
    try:
        fcntl.flock(file, operation)
    except BaseException:
        file.close()
        raise
    file.truncate(0)
    file.write(f"{os.getpid()} {memory_mb}\n")
    file.flush()
    return file
