"""`refine.loop` for the shipped models: one batch per step, drawn by a torch generator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ditscope.refine.loop import LoopSettings, fit, load_checkpoint


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, so that a resumed run draws what an uninterrupted one would."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def train(
    model: torch.nn.Module,
    loss: Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]],
    settings: LoopSettings,
    partial: Path,
) -> dict[str, Any]:
    """Train in place to settings.steps, from the checkpoint in `partial` if any; leaves the averaged weights.

    `loss(step, generator)` gives the loss and numbers to record. Returns the `summary` of the run.
    """
    fit(partial.name, model, lambda _, at, __: loss(at[0], step_generator(settings.seed, at[0])), settings, partial)
    return load_average(model, partial)


def summary(state: dict[str, Any]) -> dict[str, Any]:
    """Step, seconds, settings and mean loss over the last 100 steps, of a checkpoint's state."""
    history = state["history"]
    last = [record["loss"] for record in history[-100:]]
    return {
        "step": state["step"],
        "seconds": round(sum(record["seconds"] for record in history), 1),
        "settings": state["settings"],
        "loss": sum(last) / len(last),
    }


def load_average(model: torch.nn.Module, partial: Path) -> dict[str, Any]:
    """Put the averaged weights of the last checkpoint into the model; returns the `summary` of the run."""
    checkpoint = load_checkpoint(partial)
    if checkpoint is None:
        raise FileNotFoundError(f"{partial}: no checkpoint; run the training first")
    tensors, state = checkpoint
    with torch.no_grad():
        for name, p in model.named_parameters():
            if f"ema.{name}" in tensors:
                p.copy_(tensors[f"ema.{name}"])
    model.eval()
    return summary(state)
