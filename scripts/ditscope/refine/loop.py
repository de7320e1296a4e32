"""One resumable training loop, to the same bytes: AdamW or Muon, warm-up / stable / decay rate, averaged weights.

Gradients are accumulated over batches, and over the processes of `refine.processes`.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.tensor_files import save_tensors
from ditscope.refine.processes import data_parallel, mean_over_processes, rank, synchronised, world_size

log = logging.getLogger(__name__)

# loss(network, batch, logged) of one batch and, where the step is `logged`, numbers to record; the network may be
# wrapped for data parallel training.
Loss = Callable[[nn.Module, Any, bool], tuple[Tensor, dict[str, float]]]
# batches(numbers) gives the batch of each (step, number), `number` counting those of a step over all processes.
Batches = Callable[[list[tuple[int, int]]], Iterator[Any]]


@dataclass(frozen=True)
class LoopSettings:
    """The settings of one training run; `decay` is the share of the steps in which the rate falls to zero."""

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    decay: float = 0.25
    ema: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 100
    log_every: int = 1
    muon: bool = False


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Warm-up / stable / decay: linear rise, plateau, then 1 - sqrt fall (Haegele et al., arXiv:2405.18392)."""
    rise = min(1.0, (step + 1) / settings.warmup)
    start = settings.steps * (1 - settings.decay)
    fall = 1.0 if step < start else 1 - ((step - start) / max(settings.steps - start, 1)) ** 0.5
    return settings.lr * rise * fall


def fit(
    name: str,
    network: nn.Module,
    loss: Loss,
    settings: LoopSettings,
    folder: Path,
    accumulate: int = 1,
    batches: Batches = iter,
) -> list[dict[str, float]]:
    """Train in place to `settings.steps`, from the checkpoint in `folder` if any; leaves the averaged weights.

    A batch is to depend on (seed, step, number of the batch in the step) only: then a resumed run draws what an
    undisturbed one would, and processes share out the batches that one process would accumulate. Without `batches` the
    loss is given (step, number) itself. Returns a record per logged step: step, loss, gradient_norm, the loss's own
    numbers (means over all batches of all processes), seconds. Raises FloatingPointError where the loss is NaN or Inf.
    """
    parameters = {key: p for key, p in network.named_parameters() if p.requires_grad}
    group = optimizers(parameters, settings)
    average = {key: p.detach().clone() for key, p in parameters.items()}
    start, history = resume(name, folder, parameters, average, group)
    forward = data_parallel(network)
    network.train()
    stream = batches(batch_numbers(start, settings.steps, accumulate))
    for step in range(start, settings.steps):
        began = time.perf_counter()
        for entry in (entry for optimizer in group for entry in optimizer.param_groups):
            entry["lr"] = learning_rate(step, settings)
        for optimizer in group:
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        logged = done % settings.log_every == 0 or done == settings.steps
        records = []
        for number in range(accumulate):
            with synchronised(forward, number == accumulate - 1):
                value, numbers = loss(forward, next(stream), logged)
                (value / accumulate).backward()
            records.append({"loss": value.detach()} | numbers)
        record = mean_records(records)
        if not np.isfinite(record["loss"]):
            raise FloatingPointError(f"{name}: loss is {record['loss']} at step {step}; last checkpoint in {folder}")
        norm = nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip)
        for optimizer in group:
            optimizer.step()
        rate = min(settings.ema, (2 + step) / (11 + step))  # short at first, when the weights move most
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - rate)
        if logged:
            seconds = time.perf_counter() - began
            history.append({"step": done} | record | {"gradient_norm": norm.item(), "seconds": seconds})
        if rank() == 0 and (done % settings.checkpoint_every == 0 or done == settings.steps):
            weights = {f"model.{k}": v for k, v in parameters.items()} | {f"ema.{k}": v for k, v in average.items()}
            state = {"step": done, "processes": world_size(), "settings": asdict(settings), "history": history}
            save_checkpoint(folder, weights | optimizer_tensors(group), state)
            log.info("%s: step %d of %d, loss %.4f", name, done, settings.steps, record["loss"])
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(average[key])
    network.eval()
    return history


def batch_numbers(start: int, steps: int, accumulate: int) -> list[tuple[int, int]]:
    """(step, number) of every batch of this process from step `start` on."""
    return [(step, i * world_size() + rank()) for step in range(start, steps) for i in range(accumulate)]


def mean_records(records: list[dict[str, Any]]) -> dict[str, float]:
    """Each number's mean over the batches of a step, of all processes."""
    values = torch.tensor([[float(value) for value in record.values()] for record in records], dtype=torch.float64)
    return dict(zip(records[0], mean_over_processes(values.mean(0)).tolist(), strict=True))


def resume(
    name: str,
    folder: Path,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    group: list[torch.optim.Optimizer],
) -> tuple[int, list[dict[str, float]]]:
    """Put the last checkpoint of `folder` into weights, averages and optimizers; its step and history, 0 and empty.

    Raises InputError where the checkpoint is of another network or of another number of processes, which would draw
    other batches.
    """
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        return 0, []
    tensors, state = checkpoint
    if (processes := state.get("processes", 1)) != world_size():
        raise InputError(
            f"{folder}: the checkpoint is of {processes} processes, this training has {world_size()} and would draw "
            "other batches; go on with as many, or remove the folder to start again"
        )
    for key, p in parameters.items():
        there = tensors.get(f"model.{key}")
        if there is None or there.shape != p.shape:
            shape = "nothing" if there is None else f"shape {tuple(there.shape)}"
            raise InputError(
                f"{folder}: the checkpoint has {shape} for `{key}`, the network {tuple(p.shape)}; it is of another "
                "architecture: remove the folder to start again"
            )
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(tensors[f"model.{key}"])
            average[key].copy_(tensors[f"ema.{key}"])
    load_optimizers(group, tensors)
    log.info("%s: resumed at step %d", name, state["step"])
    return state["step"], state["history"]


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """Write tensors (safetensors) and state (json, holding the step) so that a kill leaves the old pair whole."""
    name = f"step-{state['step']:06d}"
    save_tensors({k: v.clone() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    write_text(folder / "state.json", json.dumps({**state, "tensors": f"{name}.safetensors"}, indent=1))
    for old in folder.glob("step-*.safetensors"):
        if old.name != f"{name}.safetensors":
            old.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    """The tensors and state that save_checkpoint wrote last, or None."""
    if not (folder / "state.json").exists():
        return None
    state = json.loads((folder / "state.json").read_text())
    return load_file(folder / state["tensors"]), state


INSIDE = ("blocks.", "layers.", ".layer.", ".convs.")  # of a network's inside, not its first and last layers


class Muon(torch.optim.Muon):
    """Muon (Liu et al., arXiv:2502.16982) of matrices and of convolutions, as matrices (outputs, inputs x cells)."""

    def __init__(self, parameters: list[nn.Parameter], **settings: Any) -> None:
        self.whole = parameters
        super().__init__([nn.Parameter(p.detach().view(len(p), -1)) for p in parameters], **settings)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for p in self.whole:
            p.grad = None

    def step(self, closure: Any = None) -> Any:
        """Move the parameters, which share their memory with these matrices."""
        for matrix, p in zip(self.param_groups[0]["params"], self.whole, strict=True):
            matrix.grad = None if p.grad is None else p.grad.reshape(matrix.shape)
        return super().step(closure)


def optimizers(parameters: dict[str, nn.Parameter], settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices and convolutions inside blocks and AdamW for the rest."""
    hidden = {
        name: p
        for name, p in parameters.items()
        if settings.muon and p.ndim >= 2 and name.endswith("weight") and any(mark in name for mark in INSIDE)
    }
    rest = [p for name, p in parameters.items() if name not in hidden]
    decay = settings.weight_decay
    result: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    ]
    if hidden:
        matrices = list(hidden.values())
        result.append(Muon(matrices, lr=settings.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return result


def optimizer_tensors(group: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """The state of all optimizers as named tensors."""
    return {
        f"optimizer.{which}.{index}.{key}": torch.as_tensor(value)
        for which, optimizer in enumerate(group)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def load_optimizers(group: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in group]
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, which, index, key = name.split(".")
            states[int(which)].setdefault(int(index), {})[key] = value
    for optimizer, state in zip(group, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
