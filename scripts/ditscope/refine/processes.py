"""The processes of a data parallel training under torchrun; one process without it."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ditscope.models.loading import default_device


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join torchrun's processes where WORLD_SIZE says that there are several; the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield torch.device(default_device())
        return
    cuda = default_device() == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; each adds its own batches to an optimizer step."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes, on the CPU as it was."""
    if not dist.is_initialized():
        return values
    cuda = dist.get_backend() == "nccl"
    shared = values.cuda() if cuda else values.clone()
    dist.all_reduce(shared)
    return shared.cpu() / world_size()


def data_parallel(network: nn.Module) -> nn.Module:
    """The network, wrapped so that its gradients are averaged over the processes where there are several."""
    if not dist.is_initialized():
        return network
    device = next(network.parameters()).device
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def synchronised(forward: nn.Module, last: bool) -> AbstractContextManager:
    """Exchange gradients between processes only in the last batch of a step."""
    if isinstance(forward, DistributedDataParallel) and not last:
        return forward.no_sync()
    return nullcontext()
