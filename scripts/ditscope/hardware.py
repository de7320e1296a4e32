"""What a result was measured on: a short id for paths, a fingerprint for timing tables; no torch, cheap at a parse."""

import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchao", "diffusers", "transformers", "mlx")


def hardware_id() -> str:
    """A short id of this host for paths: its first GPU (`nvidia-h200`), else its CPU (`amd-epyc-2-cores`)."""
    if gpus := nvidia_gpus():
        return slug(gpus[0]["name"])
    return f"{slug(cpu_model())}-{os.cpu_count()}-cores"


def filed_under(folder: Path, own: str, backend: str) -> list[str]:
    """Hardware ids that the benchmarks of a model are joined from: this host's `own`, or those found in `folder`.

    A model whose back end is another machine's (MLX beside a Mac, torch on one) is not measured again here where that
    machine's results came with the other half of the study.
    """
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    native = "mlx" if sys.platform == "darwin" else "torch"
    return [own] if own in found or not found or backend == native else found


def slug(text: str) -> str:
    """Lower-case letters and digits joined by `-`; trademarks and clock rates dropped."""
    text = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "unknown"


def fingerprint() -> dict[str, str | int]:
    """Host hardware, driver and package versions, one column each."""
    gpus = nvidia_gpus()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "host_memory_bytes": host_memory_bytes(),
        "gpu": gpus[0]["name"] if gpus else "",
        "gpus": len(gpus),
        "driver": gpus[0]["driver"] if gpus else "",
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {installed(name)}" for name in PACKAGES),
    }


def installed(package: str) -> str:
    """The installed version of a package, or `none`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@cache
def nvidia_gpus() -> list[dict[str, str]]:
    """Name and driver version of each NVIDIA GPU that nvidia-smi lists; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if done.returncode == 0 and "," in line]
    return [{"name": name.strip(), "driver": driver.strip()} for name, driver in rows]


@cache
def cpu_model() -> str:
    """The processor's name as the system tells it."""
    if platform.system() == "Linux":
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return names[0] if names else platform.machine()
    if platform.system() == "Darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(query, capture_output=True, text=True).stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def host_memory_bytes() -> int:
    """Physical memory of the host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
