"""Peak memory of phases of this process: resident set on the host, bytes of CUDA's allocator and of MLX's."""

import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peaks() -> None:
    """Start a phase: from now on `peaks` tells the maxima since this call."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what a phase before reserved, as autotuning does, is no part of this one's peak
        torch.cuda.reset_peak_memory_stats()
    if mx := mlx():
        mx.reset_peak_memory()
    with suppress(OSError):  # Linux: resets VmHWM (proc(5)); elsewhere the peak stays that of the whole process
        CLEAR_REFS.write_text("5")


def peaks() -> dict[str, int | None]:
    """Peak bytes of the phase: `rss_bytes`, CUDA's `allocated_bytes`, `reserved_bytes`, `mlx_bytes` (None without)."""
    cuda, mx = torch.cuda.is_available(), mlx()
    return {
        "rss_bytes": peak_rss(),
        "allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        "mlx_bytes": (max(mx.get_peak_memory(), mx.get_active_memory()) or None) if mx else None,
    }


def judged_peak(device: str) -> tuple[str, str]:
    """Which of `peaks` a model on `device` (cuda, mps, cpu, mlx) is judged by, and what it covers.

    On CUDA that is what was allocated: reserved bytes hold what autotuning left as well.
    """
    if device == "cuda":
        return "allocated_bytes", "pipeline"
    if device == "mlx":
        return "mlx_bytes", "transformer"
    return "rss_bytes", "process" if CLEAR_REFS.exists() else "process since its start"


def mlx() -> Any:
    """MLX where this process uses it: its arrays lie in unified memory, beside what torch allocates."""
    return sys.modules.get("mlx.core")


def peak_rss() -> int:
    """Peak resident bytes since `reset_peaks` on Linux, of the whole process elsewhere."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage if sys.platform == "darwin" else usage * 1024
