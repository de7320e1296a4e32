"""Whether this machine can hold a model, and how: `ditscope check --model NAME`."""

import os
import shutil
import sys
from pathlib import Path

from ditscope.config import Config
from ditscope.core.errors import InputError
from ditscope.models.fit import Machine, Needs, gb, needs, ways
from ditscope.models.folders import download_mark
from ditscope.models.hardware import gpu_memory_mb, gpus_to_choose_from, host_memory_bytes
from ditscope.models.memory import parameters
from ditscope.models.settings import Model
from ditscope.workflow.described import entry_of

MB = 1_000_000


def holding(name: str, config: Config) -> list[str]:
    """Lines that say what a model takes, which ways of holding it this machine has room for, and the simplest of them.

    Raises InputError for a name that is no model, and for a model whose entry says no `parameters` while its files are
    not here.
    """
    label, entry = entry_of(name, "", config)
    millions = parameters(entry)
    if not millions:
        raise InputError(
            f"{label}: its files are not here, and its entry says no `parameters`; `ditscope download {label}` gets "
            "them, or put `parameters: {transformer: MILLIONS, text_encoder: MILLIONS, vae: MILLIONS}` into an overlay"
        )
    model, machine = needs(millions, entry, to_download(entry)), this_machine()
    found = ways(model, machine)
    width = max(len(way.name) for way in found)
    fitting = [way.name for way in found if way.fits]
    room = model.disk <= machine.disk_mb
    return [
        *about(label, entry, model),
        f"This machine: {described(machine)}",
        *(f"  {'yes' if way.fits else ' no'}  {way.name:<{width}}  {way.text}" for way in found),
        f"  {'yes' if room else ' no'}  {'on disk':<{width}}  {gb(model.disk)} to download, {gb(machine.disk_mb)} free",
        f"{label}: " + (f"can be held {fitting[0]}" if fitting else "is more than this machine holds, in any way")
        + ("" if room else "; make room on the disk first"),
    ]  # fmt: skip


def about(label: str, entry: Model, model: Needs) -> list[str]:
    """What the entry says of a model, and what its weights take."""
    said = [entry.licence and f"licence {entry.licence}", "gated" if entry.gated else ""]
    said.append(f"{gb(entry.disk_mb)} of files" if entry.disk_mb else "")
    said.append("no `revision` is set, without which it is refused" if entry.disk_mb and not entry.revision else "")
    source = f"{entry.source}{f' at {entry.revision[:8]}' if entry.revision else ''}"
    weights = ", ".join(f"{part} {gb(size)}" for part, size in model.parts.items())
    picture = f"{entry.width} x {entry.height}" + (f", {entry.frames} frames" if entry.frames > 1 else "")
    return [
        ", ".join([f"{label}: {source}", *filter(None, said)]),
        f"  weights in {entry.dtype}: {weights}; beside them about {gb(model.working)} ({picture}; an estimate)",
    ]


def to_download(entry: Model) -> int:
    """Megabytes of a model that are still to come."""
    return 0 if download_mark(entry).is_file() else entry.disk_mb


def this_machine() -> Machine:
    """What this machine has: the GPUs that a process here sees, host memory, and free disk below the working folder."""
    host = host_memory_bytes() // MB
    memory = gpu_memory_mb()
    gpus = tuple(memory[name] for name in gpus_to_choose_from(os.environ) if name in memory)
    if sys.platform == "darwin":
        return Machine((host,), host, shutil.disk_usage(Path.cwd()).free // MB, shared=True)
    return Machine(gpus, host, shutil.disk_usage(Path.cwd()).free // MB)


def described(machine: Machine) -> str:
    """A machine in words."""
    if machine.shared:
        return f"{gb(machine.host_mb)} that GPU and CPU share"
    gpus = ", ".join(gb(size) for size in machine.gpus_mb)
    return f"{f'GPUs of {gpus}' if gpus else 'no GPU'}, {gb(machine.host_mb)} host memory"
