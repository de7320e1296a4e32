"""Whether a machine was quiet while something was timed: spread of the samples, time that others took, throttling."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import psutil

# A timing is noisy above either of these; docs/outputs/benchmark.md states them.
MOST_SPREAD = 0.10  # interquartile range of the timed runs over their median
MOST_OTHERS = 0.10  # share of the processors' time that other processes took
# Bits of NVML's reasons for lower clocks (nvml.h). Those in SLOWED make a timing noisy; a power cap is usual at work.
REASONS = {
    0x1: "idle", 0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake", 0x100: "display clocks",
}  # fmt: skip
SLOWED = 0x8 | 0x20 | 0x40 | 0x80
POLL_MS = 200
LEAST_SECONDS = 0.5  # systems count processor time in steps of 10 ms: in less time they say little


@dataclass(frozen=True)
class ProcessorTimes:
    """Seconds that processors have worked since the machine (`busy`) or a process (`own`) began, at a moment."""

    moment: float  # s of processor time that has passed, worked or idle
    busy: float
    own: float
    processors: int


@contextmanager
def watching(gpu: str = "") -> Iterator[dict[str, Any]]:
    """Watch the machine, and `gpu` where one is named (index or UUID), while a block runs.

    Yields a dict that has, after the block, `others_share`, `load_reason` (why there is no share), `cpu_mhz_low`,
    `cpu_mhz_high` (before and after), `gpu_mhz_low`, `gpu_mhz_high` and `gpu_throttling`, as far as the machine tells.
    """
    seen: dict[str, Any] = {}
    begun, mhz = processor_times(), cpu_mhz()
    with gpu_clocks(gpu) as lines:
        yield seen
    share, reason = others_share(begun, processor_times())
    both = sorted(value for value in (mhz, cpu_mhz()) if value is not None)
    frequency = {"cpu_mhz_low": both[0], "cpu_mhz_high": both[-1]} if both else {}
    seen.update({"others_share": share, "load_reason": reason} | frequency | clocks(lines))


def processor_times() -> ProcessorTimes | None:
    """Work of the processors that this process may run on, and of it and its children; None where unreadable."""
    try:
        process = psutil.Process()
        rows = psutil.cpu_times(percpu=True)
        usable = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(rows))
        rows = [rows[i] for i in usable] if max(usable) < len(rows) else rows
        own = 0.0
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                own += times.user + times.system
                own += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)  # that have ended
    except (OSError, psutil.Error, NotImplementedError, IndexError):
        return None
    # Guests are counted in `user` already; time that a hypervisor gave to others (`steal`) is busy, and not ours.
    whole = sum(sum(getattr(row, f) for f in row._fields if not f.startswith("guest")) for row in rows)
    idle = sum(row.idle + getattr(row, "iowait", 0.0) for row in rows)
    return ProcessorTimes(whole, whole - idle, own, len(rows))


def others_share(before: ProcessorTimes | None, after: ProcessorTimes | None) -> tuple[float | None, str]:
    """The share of the processors' time that others took, (busy - own) / elapsed, or None with the reason."""
    if before is None or after is None:
        return None, "this system does not tell processor times"
    elapsed = after.moment - before.moment
    if elapsed < LEAST_SECONDS * after.processors:
        return None, f"timed for less than {LEAST_SECONDS} s, too short for the steps of processor times"
    others = (after.busy - before.busy) - (after.own - before.own)
    return min(max(others / elapsed, 0.0), 1.0), ""


def cpu_mhz() -> float | None:
    """The processors' frequency now, where it can be read."""
    with suppress(OSError, AttributeError, NotImplementedError, RuntimeError):
        frequency = psutil.cpu_freq()
        return float(frequency.current) if frequency and frequency.current else None
    return None


@contextmanager
def gpu_clocks(gpu: str) -> Iterator[list[str]]:
    """Lines of nvidia-smi on a GPU's clock and the reasons for it, taken while a block runs; there after its end."""
    lines: list[str] = []
    if not gpu:
        yield lines
        return
    query = f"--query-gpu=clocks.sm,{reasons_field()}"
    command = ["nvidia-smi", f"--id={gpu}", query, "--format=csv,noheader,nounits", f"--loop-ms={POLL_MS}"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield lines
        return
    try:
        yield lines
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            lines += process.communicate(timeout=10)[0].splitlines()
        if process.poll() is None:
            process.kill()


@cache
def reasons_field() -> str:
    """What this nvidia-smi calls the reasons for lower clocks: the name changed with driver 535."""
    with suppress(OSError, subprocess.TimeoutExpired):
        known = subprocess.run(["nvidia-smi", "--help-query-gpu"], capture_output=True, text=True, timeout=20).stdout
        if "clocks_event_reasons.active" in known:
            return "clocks_event_reasons.active"
    return "clocks_throttle_reasons.active"


def clocks(lines: Sequence[str]) -> dict[str, Any]:
    """Lowest and highest clock, and the names of every reason for lower ones, of lines as `1980, 0x04`."""
    mhz, bits = [], 0
    for line in lines:
        clock, _, reason = line.partition(",")
        with suppress(ValueError):
            value, mask = float(clock), int(reason.strip(), 16)
            mhz.append(value)
            bits |= mask
    if not mhz:
        return {}
    return {"gpu_mhz_low": min(mhz), "gpu_mhz_high": max(mhz), "gpu_throttling": reasons(bits)}


def reasons(bits: int) -> str:
    """The names of NVML's reasons for lower clocks, less idleness between runs; empty where there is none."""
    return ", ".join(name for bit, name in REASONS.items() if bits & bit and name != "idle")


def spread_of(samples: Sequence[float]) -> dict[str, float]:
    """`latency_cv`, the standard deviation of the samples over their mean, and `latency_relative_iqr`."""
    low, median, high = np.quantile(samples, (0.25, 0.5, 0.75))
    deviation = np.std(samples, ddof=1) / np.mean(samples) if len(samples) > 1 else 0.0
    return {"latency_cv": float(deviation), "latency_relative_iqr": float((high - low) / median)}


def verdict(relative_iqr: float, others: float | None, throttling: str | None) -> tuple[str, str]:
    """`quiet` or `noisy` by the fixed thresholds, and what made it noisy; what is unknown (None) is not judged."""
    why = []
    if relative_iqr > MOST_SPREAD:
        why.append(f"interquartile range {relative_iqr:.0%} of the median")
    if others is not None and others > MOST_OTHERS:
        why.append(f"others took {others:.0%} of the processors' time")
    slowed = [name for bit, name in REASONS.items() if bit & SLOWED and name in (throttling or "").split(", ")]
    if slowed:
        why.append(f"the GPU was slowed ({', '.join(slowed)})")
    return ("noisy" if why else "quiet"), "; ".join(why)


def noisiness(row: dict) -> tuple[bool, float]:
    """How noisy a measurement was, for choosing the quietest: its verdict, then the worse of spread and load.

    Latency itself has no say, so that choosing does not favour fast runs.
    """
    worse = max(row["latency_relative_iqr"] / MOST_SPREAD, (row["others_share"] or 0.0) / MOST_OTHERS)
    return row["verdict"] == "noisy", worse


def visible_gpu() -> str:
    """The first GPU that CUDA computes on here, as nvidia-smi names it: an index or a UUID."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
