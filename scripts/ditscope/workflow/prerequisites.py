"""What this machine has and what can run on it, said before anything is downloaded or started."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch

from ditscope.config import Config
from ditscope.models.folders import source_folder
from ditscope.models.hardware import PACKAGES, cpu_model, host_memory_bytes, installed, nvidia_gpus, unusable
from ditscope.models.loading import device_at_hand
from ditscope.models.prepare import uncompilable
from ditscope.models.quantize import unsupported
from ditscope.models.registry import has_weights, is_generator
from ditscope.models.settings import COMPILE_STATES, EMULATED, Model, Scheme
from ditscope.workflow.holding import holding
from ditscope.workflow.job import SECRETS

GB = 1e9
LEAST_PYTHON, LEAST_CUDA = (3, 11), (12, 2)
LEAST_GPU_BYTES, LEAST_DISK_BYTES = 16 * GB, 34 * GB  # FLUX.1 in 8 bit; its files in 16 bit
MORE_PACKAGES = ("safetensors", "torch-fidelity", "snakemake")


@dataclass(frozen=True)
class Finding:
    """One line of the check: what was looked at, whether it is as a full study on real models wants it, and why."""

    topic: str
    name: str
    good: bool
    text: str


def check(
    config: Config, model: Annotated[str, "an entry of the config's `models` or a folder; empty: the study's"] = ""
) -> None:
    """Say what this machine has, which models are here, and what each scheme and compile state can do.

    With --model: whether this machine can hold that one model, and how (in its own type, with int8 weights, with text
    encoders in host memory, on several GPUs, on the CPU).
    """
    if model:
        print("\n".join(holding(model, config)))
        return
    findings = [*machine(), *models(config), *schemes(config), *compile_states()]
    width = max(len(f.name) for f in findings)
    for number, finding in enumerate(findings):
        if not number or findings[number - 1].topic != finding.topic:
            print(f"\n{finding.topic}" if number else finding.topic)
        print(f"  {'yes' if finding.good else ' no'}  {finding.name:<{width}}  {finding.text}")


def machine() -> list[Finding]:
    """Processor, accelerator, driver, memory, disk, token and package versions, beside what real models want."""
    gpus = nvidia_gpus()
    free = shutil.disk_usage(".").free
    rows = [
        ("Python", sys.version_info >= LEAST_PYTHON, platform.python_version()),
        ("processor", True, f"{cpu_model()}, {os.cpu_count()} cores, {host_memory_bytes() / GB:.1f} GB memory"),
        ("GPU", bool(gpus), ", ".join(gpu["name"] for gpu in gpus) or "none: real models take minutes per image"),
        driver(gpus),
    ]
    rows += cuda()
    wanted = f"a real model takes {LEAST_DISK_BYTES / GB:.0f}"
    rows.append(("free disk", free >= LEAST_DISK_BYTES, f"{free / GB:.1f} GB; {wanted}"))
    rows.append(("hub token", has_token(), "for gated models (FLUX, SD3); never shown, never written"))
    rows += [(package, installed(package) != "none", installed(package)) for package in (*PACKAGES, *MORE_PACKAGES)]
    return [Finding("Machine", *row) for row in rows]


def driver(gpus: list[dict[str, str]]) -> tuple[str, bool, str]:
    """The NVIDIA driver, and whether the installed torch can use it."""
    if not gpus:
        return "driver", False, "none"
    version = gpus[0]["driver"]
    reason = "" if torch.cuda.is_available() else unusable(version) or "torch sees no CUDA device with it"
    return "driver", not reason, f"{version}{f': {reason}' if reason else ''}"


def cuda() -> list[tuple[str, bool, str]]:
    """Compute capability, CUDA version and GPU memory as torch sees them."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        return [(name, False, f"torch ({built}) sees no CUDA device") for name in ("capability", "CUDA", "GPU memory")]
    capability, version = torch.cuda.get_device_capability(), torch.version.cuda or "0.0"
    memory = torch.cuda.get_device_properties(0).total_memory
    return [
        (
            "capability",
            capability >= (8, 9),
            f"{capability[0]}.{capability[1]}; fp8 with dynamic activations needs 8.9",
        ),
        ("CUDA", tuple(map(int, version.split(".")[:2])) >= LEAST_CUDA, f"{version}; 12.2 or later"),
        ("GPU memory", memory >= LEAST_GPU_BYTES, f"{memory / GB:.1f} GB; {LEAST_GPU_BYTES / GB:.0f} or more"),
    ]


def has_token() -> bool:
    """Whether a hub token is set: in the environment, or stored by `hf auth login`. It is not read."""
    if any(os.environ.get(name) for name in SECRETS):
        return True
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_TOKEN_PATH", home / "token")).exists()


def models(config: Config) -> list[Finding]:
    """Whether the weights of each selected model are here, and fit into the device's memory."""
    findings = []
    for name in config.selected_models():
        entry = config.models[name]
        if not has_weights(entry):
            findings.append(Finding("Models", name, True, f"{entry.family}, without weights"))
            continue
        folder = source_folder(entry)
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) if folder.is_dir() else 0
        kind = "generator" if is_generator(entry) else "captioner"
        if size:
            fits = size < device_memory()
            text = f"{kind}, {size / GB:.2f} GB of weights{'' if fits else ': more than this device has'}"
            findings.append(Finding("Models", name, fits, text))
        else:
            findings.append(Finding("Models", name, False, f"{kind}, {missing(entry, folder)}"))
    return findings


def missing(entry: Model, folder: Path) -> str:
    """How the weights of a model that is not here come here."""
    if not entry.revision:
        return f"no weights in {folder}; set `source`"
    gated = "" if has_token() else "; no token is set, which gated models need"
    return f"not downloaded yet: the first run fetches {entry.source} at {entry.revision[:8]}{gated}"


def device_memory() -> int:
    """Bytes of the device that models are loaded on."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else host_memory_bytes()


def schemes(config: Config) -> list[Finding]:
    """For each scheme of the config whether it can run here, and why not."""
    findings = []
    entries = [config.models[name] for name in config.benchmark.models]
    wanted = {("mlx" if e.backend == "mlx" else device_at_hand(), e.dtype) for e in entries}
    targets = sorted(wanted or {(device_at_hand(), "bfloat16")})
    for name, scheme in config.schemes.items():
        reasons = [(device, unsupported(scheme, device, dtype)) for device, dtype in targets]
        unable = {device: reason for device, reason in reasons if reason}
        able = sorted({device for device, _ in targets} - set(unable))
        reason = "" if able else next(iter(unable.values()))
        what = what_of(scheme)
        findings.append(Finding("Schemes", name, not reason, reason or f"{what}, on `{'`, `'.join(able)}`"))
    return findings


def what_of(scheme: Scheme) -> str:
    """A scheme's kind, with bits or format where it has a choice."""
    chooses = "intx" in scheme.kind or "mlx" in scheme.kind or scheme.kind in EMULATED
    stored = f", {scheme.bits} bit" if scheme.format == "int" else f", {scheme.format}"
    inputs = f", activations {scheme.activations}" if scheme.activations else ""
    return f"{scheme.kind}{stored if chooses else ''}{inputs}"


def compile_states() -> list[Finding]:
    """Whether each compile state can run here, and whether MLX is there."""
    states = [(state, uncompilable(state, device_at_hand())) for state in COMPILE_STATES]
    findings = [Finding("Compilation", state, not reason, reason or "can run") for state, reason in states]
    mlx = find_spec("mlx") is not None
    return [*findings, Finding("Back ends", "mlx", mlx, "installed" if mlx else "not installed: no MLX schemes")]
