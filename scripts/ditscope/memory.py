"""Peak memory of phases of this process: resident set on the host, allocated and reserved bytes on an accelerator."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peaks() -> None:
    """Start a phase: from now on `peaks` tells the maxima since this call."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux: resets VmHWM (proc(5)); elsewhere the peak stays that of the whole process
        CLEAR_REFS.write_text("5")


def peaks() -> dict[str, int | None]:
    """Peak bytes of the phase: `rss_bytes`, and `allocated_bytes`, `reserved_bytes` of CUDA (None without it)."""
    cuda = torch.cuda.is_available()
    return {
        "rss_bytes": peak_rss(),
        "allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
    }


def peak_rss() -> int:
    """Peak resident bytes since `reset_peaks` on Linux, of the whole process elsewhere."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage if sys.platform == "darwin" else usage * 1024
