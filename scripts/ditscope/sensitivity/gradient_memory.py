"""How many samples a backward pass takes, from what the first one keeps and from the memory of the machine."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ditscope.calibrate.load import Batch
from ditscope.models.hardware import host_memory_bytes
from ditscope.models.loading import Generator

log = logging.getLogger(__name__)
MOST = 8  # samples of one pass: more are hardly faster
SHARE = 0.5  # of the memory beside the weights; the rest is for gradients, workspaces and the decoder
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def gradient_batch(model: Generator, sample: Batch) -> int:
    """The largest number of samples, 1 to MOST, whose backward pass fits into memory; `sample` is a batch of one.

    From the memory that the device has in all, less the weights: what happens to be free would change from run to
    run, and with it the last digits of the results.
    """
    if model.computes_on == "mlx":  # goes back row by row
        return MOST
    modules = [part for part in model.pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(tensor.nbytes for part in modules for tensor in part.parameters())
    kept = kept_bytes(model, sample)
    fitting = int(SHARE * (total_memory(model.device) - weights) // max(kept, 1))
    samples = max(1, min(MOST, fitting))
    log.info("%s: a sample's backward pass keeps %d MB: %d at a time", model.name, kept // 1_000_000, samples)
    return samples


def kept_bytes(model: Generator, sample: Batch) -> int:
    """Bytes that autograd keeps of the velocity of one sample for going back, its weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.pipe.transformer.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        replace(sample, x=sample.x.detach().requires_grad_()).velocity(model)
    return sum(kept.values())


def total_memory(device: torch.device) -> int:
    """Bytes that a device has in all; of the host, what its control group may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return int(min(host_memory_bytes(), cgroup_bytes()))


def cgroup_bytes() -> float:
    """Least memory limit of this process's control groups (version 2), as a container sets it; infinite without one."""
    try:
        own = OWN_CGROUP.read_text().strip().rpartition("::/")[2]
    except OSError:
        return float("inf")
    folders = [CGROUPS / own, *(CGROUPS / own).parents]
    files = [folder / "memory.max" for folder in folders if folder.is_relative_to(CGROUPS)]
    limits = [file.read_text().strip() for file in files if file.exists()]
    return min((int(limit) for limit in limits if limit.isdigit()), default=float("inf"))
