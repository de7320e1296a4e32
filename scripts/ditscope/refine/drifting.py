"""The drifting loss (arXiv:2602.04770): move generated features along a field that positives pull and negatives push.

Everything is batched over classes and, within a feature, over locations: generated samples x (classes, locations, G,
D), targets y (classes, locations, M, D) = [generated | unconditional | positives], weights (classes, M).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-6  # of the product of the two softmaxes
SELF_DISTANCE = 100.0  # added to the normalised distance of a sample to itself
# As the official release clips them, so that a feature that hardly varies does not blow its noise up.
LEAST_SCALE = 1e-3  # of the distance scale S, and of S / sqrt(D)
LEAST_STRENGTH = 1e-4  # of a field's root mean square


@dataclass(frozen=True)
class Targets:
    """Real features that generated ones are compared with, and how much the unconditional ones count."""

    unconditional: Tensor  # (classes, locations, U, D)
    positives: Tensor  # (classes, locations, P, D)
    unconditional_weight: Tensor  # (classes,)
    own: Tensor | None = None  # (classes, G, U + P) bool: the real sample that a generated one was made from


def unconditional_weight(alpha: Tensor, generated: int, unconditional: int) -> Tensor:
    """Weight of an unconditional negative at guidance alpha: w = (alpha - 1)(G - 1) / N_unc."""
    return (alpha - 1) * (generated - 1) / max(unconditional, 1)


def target_weights(weight: Tensor, generated: int, unconditional: int, positives: int) -> Tensor:
    """Weights (classes, M) of [generated | unconditional | positives]: 1, w, 1."""
    ones = weight.new_ones(len(weight), 1)
    parts = [ones.expand(-1, generated), weight[:, None].expand(-1, unconditional), ones.expand(-1, positives)]
    return torch.cat(parts, 1)


def feature_scale(distances: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean distance over classes, locations, samples and targets: one scalar for a feature."""
    return (distances * weights).mean() / weights.mean()


def affinity(distances: Tensor, weights: Tensor, radius: float, weighting: str = "official") -> Tensor:
    """Geometric mean of the softmaxes over targets and over generated samples of -d / R, times the targets' weights.

    `distances` (..., G, M) are normalised and self-masked; `weights` broadcast to it. `log` adds log w to the logits
    instead: w then cancels in the softmax over generated samples, so its effect is sqrt(w).
    """
    logits = -distances / radius
    if weighting == "log":
        logits = logits + weights.clamp_min(FLOOR).log()
    product = logits.softmax(-1) * logits.softmax(-2)
    roots = product.clamp_min(FLOOR).sqrt()
    return roots * weights if weighting == "official" else roots * (weights > 0)


def drift_coefficients(affinities: Tensor, negatives: int) -> Tensor:
    """Coefficient of each target: A_pos * sum(A_neg) for positives, -A_neg * sum(A_pos) for the first `negatives`.

    They sum to zero for every generated sample (the field is antisymmetric in positives and negatives).
    """
    negative, positive = affinities[..., :negatives], affinities[..., negatives:]
    return torch.cat([-negative * positive.sum(-1, keepdim=True), positive * negative.sum(-1, keepdim=True)], -1)


def pairs(x: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor | None]:
    """All targets y, their weights (classes, 1, 1 or G, M), and which of them is a sample's own source.

    A sample's own source is held out of its targets: it weighs nothing.
    """
    y = torch.cat([x, targets.unconditional, targets.positives], -2)
    counts = x.shape[-2], targets.unconditional.shape[-2], targets.positives.shape[-2]
    weights = target_weights(targets.unconditional_weight.to(x), *counts)[:, None, None, :]
    if targets.own is None:
        return y, weights, None
    own = torch.nn.functional.pad(targets.own, (counts[0], 0))[:, None]
    return y, weights * ~own, own


def normalised_distances(x: Tensor, y: Tensor, weights: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distances (classes, locations, G, M) in units of their scale S, and S itself.

    Those of a sample to itself and to its `own` source are masked: so large that they take nothing of the softmaxes.
    """
    # The matrix-product form of cdist loses the digits that small distances need.
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    scale = feature_scale(distances, weights)
    generated = x.shape[-2]
    masked = torch.eye(generated, y.shape[-2], dtype=torch.bool, device=x.device)
    masked = masked if own is None else masked | own
    return distances / scale.clamp_min(LEAST_SCALE) + SELF_DISTANCE * masked, scale


@torch.no_grad()
def drifting_field(
    x: Tensor, targets: Targets, radii: Sequence[float], weighting: str = "official"
) -> tuple[Tensor, Tensor, Tensor]:
    """The field V at x (like x), the scalar S / sqrt(D) that features are divided by, and the strength of each radius.

    V is the sum over radii of sum_j c_j (y_j - x), each divided by its strength: its root mean square over the batch.
    """
    y, weights, own = pairs(x, targets)
    negatives = x.shape[-2] + targets.unconditional.shape[-2]
    distances, scale = normalised_distances(x, y, weights, own)
    unit = (scale / x.shape[-1] ** 0.5).clamp_min(LEAST_SCALE)
    fields = []
    for radius in radii:
        coefficients = drift_coefficients(affinity(distances, weights, radius, weighting), negatives)
        fields.append((coefficients @ y - coefficients.sum(-1, keepdim=True) * x) / unit)
    strengths = torch.stack([field.square().mean().sqrt() for field in fields])
    total = sum(field / strength.clamp_min(LEAST_STRENGTH) for field, strength in zip(fields, strengths, strict=True))
    return total, unit, strengths


def drifting_loss(
    x: Tensor, targets: Targets, radii: Sequence[float], weighting: str = "official"
) -> tuple[Tensor, Tensor]:
    """Mean squared distance of x to its own drifted position, x and V in units of the feature's scale.

    Every radius contributes a field of unit strength, so the value stays near a constant; what falls as the generated
    features approach the real ones are the strengths before that, returned as the second value (radii,).
    """
    field, unit, strengths = drifting_field(x.detach(), targets, radii, weighting)
    scaled = x / unit
    return (scaled - (scaled.detach() + field)).square().mean(), strengths


def sample_alpha(draws: Tensor, atoms: Tensor, power: float, atom: float) -> Tensor:
    """Guidance strengths on [1, 4] with density proportional to alpha^-power, and exactly 1 with probability `atom`.

    `draws` and `atoms` are uniform on [0, 1); the first go through the inverse distribution function.
    """
    if power == 1:
        alpha = 4**draws
    else:
        alpha = (1 + draws * (4 ** (1 - power) - 1)) ** (1 / (1 - power))
    return torch.where(atoms < atom, torch.ones_like(alpha), alpha)


def kernel_statistics(
    x: Tensor, targets: Targets, radius: float, weighting: str = "official"
) -> dict[str, float | None]:
    """What the kernel of one feature sees: distances, effective neighbours exp(entropy), masses of both sides.

    Distances are in units of their weighted mean and leave out those of a sample to itself and to its own source. None
    where that leaves nothing.
    """
    y, weights, own = pairs(x, targets)
    generated, negatives = x.shape[-2], x.shape[-2] + targets.unconditional.shape[-2]
    distances, _ = normalised_distances(x, y, weights, own)
    affinities = affinity(distances, weights, radius, weighting)
    sides = {"negative": affinities[..., :negatives], "positive": affinities[..., negatives:]}
    seen = distances < SELF_DISTANCE
    positive, there = distances[..., negatives:], seen[..., negatives:]
    nearest = positive.where(there, torch.inf).amin(-1)
    statistics = {
        "distance_generated": distances[..., :generated][seen[..., :generated]].mean(),
        "distance_positive_mean": positive[there].mean(),
        "distance_positive_std": positive[there].std() if there.sum() > 1 else positive.new_tensor(torch.nan),
        "distance_positive_min": nearest[nearest.isfinite()].mean(),
    }
    for side, values in sides.items():
        mass = values.sum(-1, keepdim=True)
        share = values / mass.clamp_min(torch.finfo(values.dtype).tiny)
        entropy = -torch.special.xlogy(share, share).sum(-1)
        effective = entropy.exp() * (mass[..., 0] > 0)
        statistics |= {f"{side}_mass": mass.mean(), f"effective_{side}": effective.mean()}
    statistics["positive_negative_mass_ratio"] = statistics["positive_mass"] / statistics["negative_mass"]
    return {name: float(value) if value.isfinite() else None for name, value in statistics.items()}
