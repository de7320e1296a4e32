"""The refiner's training loop: gradient accumulation, data parallel under torchrun, resumable to the same bytes."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ditscope.models.registry import default_device
from ditscope.training.loop import (
    LoopSettings,
    learning_rate,
    load_checkpoint,
    load_optimizers,
    optimizer_tensors,
    optimizers,
    save_checkpoint,
)

log = logging.getLogger(__name__)

# loss(network, rng) of one batch, and numbers to record; the network may be wrapped for data parallel training.
Loss = Callable[[nn.Module, np.random.Generator], tuple[Tensor, dict[str, float]]]


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


def fit(
    name: str, network: nn.Module, loss: Loss, settings: LoopSettings, folder: Path, accumulate: int = 1
) -> list[dict[str, float]]:
    """Train in place to `settings.steps`, from the checkpoint in `folder` if any; leaves the averaged weights.

    The random numbers of a batch depend on (seed, step, number of the batch in the step) only: a resumed run draws what
    an undisturbed one would, and processes share out the batches that one process would accumulate. Returns one record
    a step: step, loss, gradient_norm, the loss's own numbers, seconds.
    """
    parameters = dict(network.named_parameters())
    group = optimizers(parameters, settings)
    average = {key: p.detach().clone() for key, p in parameters.items()}
    history = resume(folder, parameters, average, group)
    if history:
        log.info("%s: resumed at step %d", name, len(history))
    device = next(iter(parameters.values())).device
    ids = [device.index] if device.type == "cuda" else None
    forward = DistributedDataParallel(network, device_ids=ids) if dist.is_initialized() else network
    network.train()
    while (step := len(history)) < settings.steps:
        began = time.perf_counter()
        for entry in (entry for optimizer in group for entry in optimizer.param_groups):
            entry["lr"] = learning_rate(step, settings)
        for optimizer in group:
            optimizer.zero_grad(set_to_none=True)
        batches = []
        for number in range(accumulate):
            rng = np.random.default_rng([settings.seed, step, number * world_size() + rank()])
            with synchronised(forward, number == accumulate - 1):
                value, numbers = loss(forward, rng)
                (value / accumulate).backward()
            batches.append({"loss": value.item()} | numbers)
        record = {key: float(np.mean([b[key] for b in batches])) for key in batches[0]}
        if not np.isfinite(record["loss"]):
            raise FloatingPointError(f"{name}: loss is {record['loss']} at step {step}; last checkpoint in {folder}")
        norm = nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip)
        for optimizer in group:
            optimizer.step()
        rate = min(settings.ema, (2 + step) / (11 + step))  # short at first, when the weights move most
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - rate)
        seconds = time.perf_counter() - began
        history.append({"step": step + 1} | record | {"gradient_norm": norm.item(), "seconds": seconds})
        done = len(history)
        if rank() == 0 and (done % settings.checkpoint_every == 0 or done == settings.steps):
            weights = {f"model.{k}": v for k, v in parameters.items()} | {f"ema.{k}": v for k, v in average.items()}
            save_checkpoint(folder, weights | optimizer_tensors(group), {"step": done, "history": history})
            log.info("%s: step %d of %d, loss %.4f", name, done, settings.steps, record["loss"])
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(average[key])
    network.eval()
    return history


def resume(
    folder: Path, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], group: list[torch.optim.Optimizer]
) -> list[dict[str, float]]:
    """Put the last checkpoint of `folder` into weights, averages and optimizers; its history, empty without one."""
    found = load_checkpoint(folder)
    if found is None:
        return []
    tensors, state = found
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(tensors[f"model.{key}"])
            average[key].copy_(tensors[f"ema.{key}"])
    load_optimizers(group, tensors)
    return state["history"]


def synchronised(forward: nn.Module, last: bool) -> AbstractContextManager:
    """Exchange gradients between processes only in the last batch of a step."""
    if isinstance(forward, DistributedDataParallel) and not last:
        return forward.no_sync()
    return nullcontext()
