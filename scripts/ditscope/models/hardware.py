"""What a result was measured on: a short id for paths, a fingerprint for timing tables; no torch, cheap at a parse."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ON_CPU = "DITSCOPE_CPU"  # 1: the CPU may compute though GPUs are at hand
# The first driver that runs builds of a CUDA release, by its major version (NVIDIA's CUDA compatibility guide).
LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
PACKAGES = ("torch", "torchao", "diffusers", "transformers", "mlx")


VISIBLE, ORDER, SHARE = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "DITSCOPE_JOBS_PER_GPU"
SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "SGE_TASK_ID")


def hardware_id() -> str:
    """A short id for paths of what computes here: the GPU (`nvidia-h200`), else the CPU (`amd-epyc-2-cores`)."""
    if gpu := computing_gpu():
        return slug(gpu)
    return f"{slug(cpu_model())}-{os.cpu_count()}-cores"


def computing_gpu() -> str:
    """The name of the first GPU that torch computes on here; empty where that is the CPU.

    Torch is asked where it is loaded; else it is told from the driver and the installed build.
    """
    torch = sys.modules.get("torch")
    if torch is not None and sys.platform == "linux":
        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    gpus = visible_gpus(os.environ)
    return gpus[0]["name"] if gpus and not unusable(gpus[0]["driver"]) else ""


def visible_gpus(environment: Mapping[str, str]) -> list[dict[str, str]]:
    """The NVIDIA GPUs of this host that CUDA_VISIBLE_DEVICES lets a process see; all where it is not set."""
    gpus = nvidia_gpus()
    if VISIBLE not in environment:
        return gpus
    names = gpus_to_choose_from(environment)
    chosen = [gpus[int(name)] for name in names if name.isdigit() and int(name) < len(gpus)]
    return chosen or (gpus if names else [])


def idle_gpus(environment: Mapping[str, str]) -> str:
    """Why a process that torch computes for on the CPU must not: it has NVIDIA GPUs, with what keeps torch from them.

    Empty where it has none (none is there, the scheduler gave none, CUDA_VISIBLE_DEVICES is set to nothing), and with
    DITSCOPE_CPU=1, which asks for the CPU.
    """
    if environment.get(ON_CPU) == "1":
        return ""
    given, listed = gpus_to_choose_from(environment), visible_gpus(environment)
    if not given and (not listed or scheduled(environment)):
        return ""
    what = f"GPU {', '.join(given)}" if given else listed[0]["name"]
    reason = (unusable(listed[0]["driver"]) if listed else "") or "torch sees no CUDA device"
    return (
        f"{what} is at hand, but {reason}: the CPU would compute in its place; install a matching driver or torch "
        f"(docs/environments.md), or set {ON_CPU}=1 to compute on the CPU"
    )


def unusable(driver: str) -> str:
    """Why the installed torch cannot use an NVIDIA GPU under `driver`; empty where it should, or is not installed."""
    version, cuda = torch_build()
    if not version:
        return ""
    if not cuda:
        return f"torch {version} is built without CUDA"
    least = LEAST_DRIVERS.get(int(cuda.partition(".")[0]), 0)
    major = driver.partition(".")[0]
    if major.isdigit() and int(major) < least:
        return f"torch {version} (CUDA {cuda}) needs driver {least} or later, this one is {driver}"
    return ""


@cache
def torch_build() -> tuple[str, str]:
    """Version of the installed torch, and of the CUDA that it is built for, from its files; empty where there is none.

    A build for AMD's GPUs counts as none installed: it has no business with NVIDIA's driver.
    """
    spec = find_spec("torch")
    if spec is None or not spec.origin:
        return "", ""
    text = (Path(spec.origin).parent / "version.py").read_text()
    matches = {name: re.search(rf"^{name}\b.*?= '([^']*)'", text, re.M) for name in ("__version__", "cuda", "hip")}
    version, cuda, hip = (match[1] if match else "" for match in matches.values())
    return ("", "") if hip else (version, cuda)


def filed_under(folder: Path, own: str, backend: str) -> list[str]:
    """Hardware ids that the benchmarks of a model are joined from: this host's `own`, or those found in `folder`.

    A model whose back end is another machine's (MLX beside a Mac, torch on one) is not measured again here where that
    machine's results came with the other half of the study.
    """
    ids = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    native = "mlx" if sys.platform == "darwin" else "torch"
    return [own] if own in ids or not ids or backend == native else ids


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
def gpu_memory_mb() -> dict[str, int]:
    """Megabytes of each NVIDIA GPU, by its index and by its UUID; empty where nvidia-smi is not there."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if done.returncode == 0]
    sizes = [(names, int(size) * 1024**2 // 1_000_000) for *names, size in rows if size.isdigit()]
    return {name: size for names, size in sizes for name in names}


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


def scheduled(environment: Mapping[str, str]) -> str:
    """The id of the scheduler's job that this process is part of; empty outside of any."""
    return next((environment[name] for name in SCHEDULERS if environment.get(name)), "")


def gpus_to_choose_from(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """The CUDA_VISIBLE_DEVICES that was set before, else every NVIDIA device; a scheduler that set none gave none."""
    if VISIBLE in environment:
        names = [name.strip() for name in environment[VISIBLE].split(",")]
        return [name for name in names if name not in ("", "-1", "NoDevFiles")]
    if scheduled(environment):
        return []
    return [str(i) for i in range(sum(path.name[6:].isdigit() for path in devices.glob("nvidia*")))]
