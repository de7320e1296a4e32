"""One resumable training loop: AdamW, warm-up / stable / decay learning rate, exponential moving average."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from ditscope.core.tensor_files import save_tensors

log = logging.getLogger(__name__)


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


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, so that a resumed run draws what an uninterrupted one would."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """Write tensors (safetensors) and state (json, holding the step) so that a kill leaves the old pair whole."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{state['step']:06d}"
    save_tensors({k: v.clone() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    temporary = folder / "state.json.tmp"
    temporary.write_text(json.dumps({**state, "tensors": f"{name}.safetensors"}, indent=1))
    temporary.replace(folder / "state.json")
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


def train(
    model: torch.nn.Module,
    loss: Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]],
    settings: LoopSettings,
    partial: Path,
) -> dict:
    """Train in place to settings.steps, from the checkpoint in `partial` if any; leaves the EMA weights in the model.

    `loss(step, generator)` gives the loss and numbers to log. Returns {"step", "seconds", "settings", "loss"}.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    group = optimizers(parameters, settings)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    step, seconds = 0, 0.0
    found = load_checkpoint(partial)
    if found is not None:
        tensors, state = found
        step, seconds = state["step"], state["seconds"]
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(tensors[f"model.{name}"])
                average[name].copy_(tensors[f"ema.{name}"])
        load_optimizers(group, tensors)
        log.info("resumed at step %d", step)
    model.train()
    recent: list[float] = []
    started = time.perf_counter()

    def state_now() -> dict:
        return {
            "step": step,
            "seconds": round(seconds + time.perf_counter() - started, 1),
            "settings": asdict(settings),
            "loss": sum(recent[-100:]) / max(len(recent[-100:]), 1),
        }

    def checkpoint() -> None:
        tensors = {f"model.{k}": v for k, v in parameters.items()} | {f"ema.{k}": v for k, v in average.items()}
        save_checkpoint(partial, tensors | optimizer_tensors(group), state_now())

    while step < settings.steps:
        for entry in (entry for optimizer in group for entry in optimizer.param_groups):
            entry["lr"] = learning_rate(step, settings)
        value, numbers = loss(step, step_generator(settings.seed, step))
        if not torch.isfinite(value):
            raise FloatingPointError(f"loss is {value.item()} at step {step}; the last checkpoint is in {partial}")
        for optimizer in group:
            optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip)
        for optimizer in group:
            optimizer.step()
        step += 1
        rate = min(settings.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - rate)
        recent.append(float(value.detach()))
        if step % 25 == 0 or step == settings.steps:
            detail = " ".join(f"{k} {v:.4f}" for k, v in numbers.items())
            mean = sum(recent[-25:]) / len(recent[-25:])
            log.info("step %d loss %.4f %s (%.0f s)", step, mean, detail, state_now()["seconds"])
        if step % settings.checkpoint_every == 0 or step == settings.steps:
            checkpoint()
    summary = state_now()
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(average[name])
    model.eval()
    return summary


def load_average(model: torch.nn.Module, partial: Path) -> dict:
    """Put the EMA weights of the last checkpoint into the model; returns the checkpoint's state."""
    found = load_checkpoint(partial)
    if found is None:
        raise FileNotFoundError(f"{partial}: no checkpoint; run the training first")
    tensors, state = found
    with torch.no_grad():
        for name, p in model.named_parameters():
            if f"ema.{name}" in tensors:
                p.copy_(tensors[f"ema.{name}"])
    model.eval()
    return state
