"""One resumable training loop, to the same bytes: AdamW or Muon, warm-up / stable / decay rate, averaged weights.

Gradients are accumulated over batches, and over the processes of `refine.processes`.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ditscope.core.atomic import write_text
from ditscope.core.tensor_files import save_tensors
from ditscope.refine.processes import data_parallel, rank, synchronised, world_size

log = logging.getLogger(__name__)

# loss(network, step, number) of one batch, the `number`-th of the step over all processes, and numbers to record; the
# network may be wrapped for data parallel training.
Loss = Callable[[nn.Module, int, int], tuple[Tensor, dict[str, float]]]


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
    muon: bool = False


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Warm-up / stable / decay: linear rise, plateau, then 1 - sqrt fall (Haegele et al., arXiv:2405.18392)."""
    rise = min(1.0, (step + 1) / settings.warmup)
    start = settings.steps * (1 - settings.decay)
    fall = 1.0 if step < start else 1 - ((step - start) / max(settings.steps - start, 1)) ** 0.5
    return settings.lr * rise * fall


def fit(
    name: str, network: nn.Module, loss: Loss, settings: LoopSettings, folder: Path, accumulate: int = 1
) -> list[dict[str, float]]:
    """Train in place to `settings.steps`, from the checkpoint in `folder` if any; leaves the averaged weights.

    The random numbers of a batch are to depend on (seed, step, number of the batch in the step) only: then a resumed
    run draws what an undisturbed one would, and processes share out the batches that one process would accumulate.
    Returns one record per step: step, loss, gradient_norm, the loss's own numbers, seconds. Raises FloatingPointError
    where the loss is NaN or Inf.
    """
    parameters = {key: p for key, p in network.named_parameters() if p.requires_grad}
    group = optimizers(parameters, settings)
    average = {key: p.detach().clone() for key, p in parameters.items()}
    history = resume(folder, parameters, average, group)
    if history:
        log.info("%s: resumed at step %d", name, len(history))
    forward = data_parallel(network)
    network.train()
    while (step := len(history)) < settings.steps:
        began = time.perf_counter()
        for entry in (entry for optimizer in group for entry in optimizer.param_groups):
            entry["lr"] = learning_rate(step, settings)
        for optimizer in group:
            optimizer.zero_grad(set_to_none=True)
        batches = []
        for number in range(accumulate):
            with synchronised(forward, number == accumulate - 1):
                value, numbers = loss(forward, step, number * world_size() + rank())
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
            state = {"step": done, "settings": asdict(settings), "history": history}
            save_checkpoint(folder, weights | optimizer_tensors(group), state)
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
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        return []
    tensors, state = checkpoint
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(tensors[f"model.{key}"])
            average[key].copy_(tensors[f"ema.{key}"])
    load_optimizers(group, tensors)
    return state["history"]


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


def optimizers(parameters: dict[str, torch.Tensor], settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon (Liu et al., arXiv:2502.16982) for the matrices inside blocks and AdamW for the rest."""
    inside = ("blocks.", "layers.", ".layer.")
    hidden = [
        p for name, p in parameters.items() if settings.muon and p.ndim == 2 and any(mark in name for mark in inside)
    ]
    chosen = {id(p) for p in hidden}
    rest = [p for p in parameters.values() if id(p) not in chosen]
    decay = settings.weight_decay
    result: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    ]
    if hidden:
        result.append(torch.optim.Muon(hidden, lr=settings.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
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
