"""What a refiner is trained on: to return each sample (paired), to match distributions (drifting), or both (sum)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ditscope.refine.batches import Batch
from ditscope.refine.drifting import Targets, drifting_losses, kernel_of
from ditscope.refine.features import VANILLA, Features
from ditscope.refine.settings import Refine


@dataclass(frozen=True)
class Step:
    """One batch: what was refined, and how to get what the drifting loss compares."""

    refined: Tensor  # (batch, tokens, size)
    batch: Batch
    features: Callable[[], tuple[Features, dict[str, Targets]]]  # of the refined and of real samples, made when asked
    logged: bool = True  # whether numbers are wanted beside the loss; they cost a wait for the device


Objective = Callable[[Step, Refine], tuple[Tensor, dict[str, float]]]


def paired(step: Step, settings: Refine) -> tuple[Tensor, dict[str, float]]:
    """Mean squared error of refined to clean tokens, keys among them; no further metrics."""
    return (step.refined - step.batch.clean).square().mean(), {}


def drifting(step: Step, settings: Refine) -> tuple[Tensor, dict[str, float]]:
    """The sum of the drifting losses of all features, and the mean strength of the field at each radius."""
    generated, targets = step.features()
    by_name = {name: by_class(feature, settings.classes_per_step) for name, feature in generated.items()}
    losses, strengths = drifting_losses(by_name, targets, kernel_of(settings))
    weights = {name: settings.vanilla_weight if name == VANILLA else 1.0 for name in losses}
    loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
    if not step.logged:
        return loss, {}
    mean = torch.stack(list(strengths.values())).mean(0).tolist()
    return loss, {f"field_strength_R{radius:g}": value for radius, value in zip(settings.radii, mean, strict=True)}


def both(step: Step, settings: Refine) -> tuple[Tensor, dict[str, float]]:
    """The paired loss plus `drifting_weight` times the mean drifting loss of a feature, and both terms."""
    near, _ = paired(step, settings)
    alike, fields = drifting(step, settings)
    generated, _ = step.features()
    alike = alike / len(generated)
    if not step.logged:
        return near + settings.drifting_weight * alike, {}
    terms = {"loss_paired": float(near.detach()), "loss_drifting": float(alike.detach())}
    return near + settings.drifting_weight * alike, fields | terms


OBJECTIVES: dict[str, Objective] = {"paired": paired, "drifting": drifting, "sum": both}


def by_class(feature: Tensor, classes: int) -> Tensor:
    """(classes * samples, locations, channels) -> (classes, locations, samples, channels)."""
    return feature.unflatten(0, (classes, -1)).transpose(1, 2)
