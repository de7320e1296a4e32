"""The drifting loss (arXiv:2602.04770): move generated features along a field that positives pull and negatives push.

Everything is batched over classes and over locations: a feature is (classes, locations, samples, D), generated samples
are x (.., G, D), targets y (.., M, D) = [generated | unconditional | positives]. All between distances and fields is
done for all features of one D at once, their locations side by side as vectors (classes, vectors, G, M).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from ditscope.refine.settings import Refine

FLOOR = 1e-6  # of the product of the two softmaxes
SELF_DISTANCE = 100.0  # added to the normalised distance of a sample to itself
# As the official release clips them, so that a feature that hardly varies does not blow its noise up.
LEAST_SCALE = 1e-3  # of the distance scale S, and of S / sqrt(D)
LEAST_STRENGTH = 1e-4  # of a field's root mean square


@dataclass(frozen=True)
class Kernel:
    """How generated features are compared with targets; by default as in the official release."""

    radii: Sequence[float] = (0.02, 0.05, 0.2)
    weighting: str = "official"  # the weight multiplies the affinity, or its logarithm (log) the logits
    softmax: str = "both"  # over targets and over generated samples, over targets only, or none
    shared: Sequence[str] = (
        "classes",
        "locations",
    )  # one scale over all (of all ranks), a feature's
    compiled: bool = False


def kernel_of(settings: Refine) -> Kernel:
    """The kernel of the settings."""
    radii, shared = tuple(settings.radii), tuple(settings.shared_scales)
    return Kernel(radii, settings.weighting, settings.softmax, shared, settings.compile_loss)


@dataclass(frozen=True)
class Targets:
    """Real features that generated ones are compared with, and how much the unconditional ones count."""

    unconditional: Tensor  # (classes, locations, U, D)
    positives: Tensor  # (classes, locations, P, D)
    unconditional_weight: Tensor  # (classes,)
    own: Tensor | None = None  # (classes, G, U + P) bool: the real sample that a generated one was made from
    rows: Tensor | None = None  # (classes, U + P) number of each real sample, so that statistics count copies once


@dataclass(frozen=True)
class Group:
    """Features of one D side by side, each with its targets."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]  # locations of each feature, their sum is the number of vectors
    x: Tensor  # (classes, vectors, G, D)
    targets: tuple[tuple[Tensor, Tensor, Tensor], ...]  # of each feature (classes, locations, G or U or P, D)
    weights: Tensor  # (classes, 1, 1 or G, M)
    masked: Tensor  # (1 or classes, 1, G, M) bool: a sample itself and its own source
    negatives: int  # the first targets; the others are positives


# What pairs weigh ---------------------------------------------------------------------------------------------------


def unconditional_weight(alpha: Tensor, generated: int, unconditional: int) -> Tensor:
    """Weight of an unconditional negative at guidance alpha: w = (alpha - 1)(G - 1) / N_unc."""
    return (alpha - 1) * (generated - 1) / max(unconditional, 1)


def target_weights(weight: Tensor, generated: int, unconditional: int, positives: int) -> Tensor:
    """Weights (classes, M) of [generated | unconditional | positives]: 1, w, 1."""
    ones = weight.new_ones(len(weight), 1)
    parts = [ones.expand(-1, generated), weight[:, None].expand(-1, unconditional), ones.expand(-1, positives)]
    return torch.cat(parts, 1)


def sample_alpha(draws: Tensor, atoms: Tensor, power: float, atom: float, choices: Sequence[float] = ()) -> Tensor:
    """Guidance strengths on [1, 4] with density proportional to alpha^-power, and exactly 1 with probability `atom`.

    `draws` and `atoms` are uniform on [0, 1); the first go through the inverse distribution function. With `choices`
    each is drawn as often as the others, and power and atom do not count.
    """
    if choices:
        return draws.new_tensor(choices)[(draws * len(choices)).long().clamp_max(len(choices) - 1)]
    if power == 1:
        alpha = 4**draws
    else:
        alpha = (1 + draws * (4 ** (1 - power) - 1)) ** (1 / (1 - power))
    return torch.where(atoms < atom, torch.ones_like(alpha), alpha)


def pair_weights(x: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Weights (classes, 1, 1 or G, M) and mask (1 or classes, 1, G, M) of the pairs of samples and targets.

    Masked are a sample itself and its own source, which also weighs nothing: it is held out of its targets.
    """
    generated, unconditional, positives = x.shape[-2], targets.unconditional.shape[-2], targets.positives.shape[-2]
    weights = target_weights(targets.unconditional_weight.to(x), generated, unconditional, positives)[:, None, None]
    itself = torch.eye(generated, weights.shape[-1], dtype=torch.bool, device=x.device)[None, None]
    if targets.own is None:
        return weights, itself
    own = torch.nn.functional.pad(targets.own, (generated, 0))[:, None]
    return weights * ~own, itself | own


# The field ----------------------------------------------------------------------------------------------------------


def affinity(distances: Tensor, weights: Tensor, radius: float, kernel: Kernel = Kernel()) -> Tensor:
    """Geometric mean of the softmaxes over targets and over generated samples of -d / R, times the targets' weights.

    `distances` (..., G, M) are normalised and self-masked; `weights` broadcast to it. `log` adds log w to the logits
    instead: w then cancels in the softmax over generated samples, so its effect is sqrt(w). The softmaxes `targets`
    and `none` are ablations: over targets only, and exp(-d / R) itself.
    """
    logits = -distances / radius
    if kernel.weighting == "log":
        logits = logits + weights.clamp_min(FLOOR).log()
    if kernel.softmax == "both":
        affinities = (logits.softmax(-1) * logits.softmax(-2)).clamp_min(FLOOR).sqrt()
    else:
        affinities = logits.softmax(-1) if kernel.softmax == "targets" else logits.exp()
    return affinities * (weights if kernel.weighting == "official" else weights > 0)


def drift_coefficients(affinities: Tensor, negatives: int) -> Tensor:
    """Coefficient of each target: A_pos * sum(A_neg) for positives, -A_neg * sum(A_pos) for the first `negatives`.

    They sum to zero for every generated sample (the field is antisymmetric in positives and negatives).
    """
    negative, positive = affinities[..., :negatives], affinities[..., negatives:]
    return torch.cat([-negative * positive.sum(-1, keepdim=True), positive * negative.sum(-1, keepdim=True)], -1)


def radius_fields(group: Group, distances: Tensor, unit: Tensor, kernel: Kernel) -> Tensor:
    """The field sum_j c_j (y_j - x) / unit of every radius, (radii, classes, vectors, G, D); distances normalised."""
    affinities = [affinity(distances, group.weights, radius, kernel) for radius in kernel.radii]
    coefficients = torch.cat([drift_coefficients(a, group.negatives) for a in affinities], -2)  # (.., radii * G, M)
    pulled = torch.cat(
        [
            sum(c @ y for c, y in zip(part.split([y.shape[-2] for y in ys], -1), ys, strict=True))
            for part, ys in zip(coefficients.split(group.sizes, 1), group.targets, strict=True)
        ],
        1,
    )
    split = len(kernel.radii), -1
    held = coefficients.sum(-1, keepdim=True).unflatten(-2, split) * group.x.detach()[:, :, None]
    return ((pulled.unflatten(-2, split) - held) / unit[..., None]).movedim(2, 0)


@cache
def compiled(function: Callable) -> Callable:
    """A function compiled for the shapes of its arguments, which are the same at every step."""
    return torch.compile(function, dynamic=False)


def pair_distances(group: Group) -> Tensor:
    """Euclidean distances (classes, vectors, G, M)."""
    # The matrix-product form of cdist loses the digits that small distances need. Targets are not put together: copies
    # of them would cost as much as all the rest.
    parts = [[torch.cdist(ys[0], y, compute_mode="donot_use_mm_for_euclid_dist") for y in ys] for ys in group.targets]
    return torch.cat([torch.cat(part, -1) for part in parts], 1)


def normalised(distances: Tensor, scale: Tensor, masked: Tensor) -> Tensor:
    """Distances in units of their scale; masked pairs are so far apart that they take nothing of the softmaxes."""
    return distances / scale.clamp_min(LEAST_SCALE) + SELF_DISTANCE * masked


def feature_scales(groups: Sequence[Group], distances: Sequence[Tensor], shared: Sequence[str]) -> list[Tensor]:
    """Weighted mean distances of the groups, (classes or 1, vectors, 1, 1) each."""
    totals = [(d * g.weights).sum((-1, -2)) for g, d in zip(groups, distances, strict=True)]
    counts = [g.weights.expand_as(d[:, :1]).sum((-1, -2)) for g, d in zip(groups, distances, strict=True)]
    return [mean[..., None, None] for mean in shared_means(totals, counts, [g.sizes for g in groups], shared)]


@torch.no_grad()
def drifting_fields(groups: Sequence[Group], kernel: Kernel) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each group the field V like x, the unit S / sqrt(D) of its features, and the strength of each radius.

    V is the sum over radii of sum_j c_j (y_j - x), each divided by its strength, its root mean square. Units and
    strengths are one number for what `kernel.shared` names, over all ranks: (classes or 1, vectors, 1, 1), the
    strengths with the radii before them. All groups together take two reductions.
    """
    distances = [pair_distances(group) for group in groups]
    scales = feature_scales(groups, distances, kernel.shared)
    units = [(scale / g.x.shape[-1] ** 0.5).clamp_min(LEAST_SCALE) for g, scale in zip(groups, scales, strict=True)]
    field_of = compiled(radius_fields) if kernel.compiled else radius_fields
    fields = []
    for g, distance, scale, unit in zip(groups, distances, scales, units, strict=True):
        near = normalised(distance, scale, g.masked)
        fields.append(field_of(g, near, unit, kernel))
    totals = [field.square().sum((-1, -2)) for field in fields]
    counts = [total.new_full((1,), field[0, 0, 0].numel()) for field, total in zip(fields, totals, strict=True)]
    squares = shared_means(totals, counts, [g.sizes for g in groups], kernel.shared)
    strengths = [square.sqrt()[..., None, None] for square in squares]
    summed = [(f / strength.clamp_min(LEAST_STRENGTH)).sum(0) for f, strength in zip(fields, strengths, strict=True)]
    return list(zip(summed, units, strengths, strict=True))


# Scales over features and ranks -------------------------------------------------------------------------------------


def shared_means(
    totals: Sequence[Tensor], counts: Sequence[Tensor], sizes: Sequence[tuple[int, ...]], shared: Sequence[str]
) -> list[Tensor]:
    """Totals (..., classes, vectors) over counts that broadcast to them, both first summed over what is shared.

    `sizes` are the locations of each group's features. Returns (..., classes or 1, vectors).
    """
    sums = [torch.stack([t, c.expand_as(t)]) for t, c in zip(totals, counts, strict=True)]
    if "locations" in shared:
        parts = [s.split(size, -1) for s, size in zip(sums, sizes, strict=True)]
        sums = [torch.cat([p.sum(-1, keepdim=True).expand_as(p) for p in part], -1) for part in parts]
    if "classes" in shared:
        sums = over_ranks([s.sum(-2, keepdim=True) for s in sums])
    return [total / count for total, count in sums]


def over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over the processes of a training, in one reduction, so that two are one batch of twice the size."""
    if not dist.is_initialized():
        return list(tensors)
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]


# The loss -----------------------------------------------------------------------------------------------------------


def side_by_side(features: Mapping[str, Tensor], targets: Mapping[str, Targets]) -> list[Group]:
    """Features (classes, locations, G, D) by name in groups of one D; those of less than 32 bits as float32.

    All are features of the same samples: their targets have one weight and one source for each of these.
    """
    alike: dict[tuple[int, torch.dtype], list[str]] = {}
    for name, x in features.items():
        alike.setdefault((x.shape[-1], x.dtype), []).append(name)
    groups = []
    for names in alike.values():
        first = targets[names[0]]
        x = torch.cat([single(features[name]) for name in names], 1)
        each = [(features[n].detach(), targets[n].unconditional, targets[n].positives) for n in names]
        parts = tuple((single(mine), u.to(x), p.to(x)) for mine, u, p in each)
        weights, masked = pair_weights(x, first)
        sizes = tuple(features[name].shape[1] for name in names)
        negatives = x.shape[-2] + first.unconditional.shape[-2]
        groups.append(Group(tuple(names), sizes, x, parts, weights, masked, negatives))
    return groups


def single(x: Tensor) -> Tensor:
    """At least float32: distances of bfloat16 features would have two digits."""
    return x.float() if torch.finfo(x.dtype).bits < 32 else x


def drifting_losses(
    features: Mapping[str, Tensor], targets: Mapping[str, Targets], kernel: Kernel = Kernel()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each feature (classes, locations, G, D) the loss, and the strengths (radii,) of its field.

    The loss is the mean squared distance of x to its own drifted position, x and V in units of the feature's scale.
    Every radius contributes a field of unit strength, so the value stays near a constant; what falls as the generated
    features approach the real ones are the strengths before that.
    """
    groups = side_by_side(features, targets)
    losses: dict[str, Tensor] = {}
    strengths: dict[str, Tensor] = {}
    for group, (field, unit, strength) in zip(groups, drifting_fields(groups, kernel), strict=True):
        scaled = group.x / unit
        squares = (scaled - (scaled.detach() + field)).square().mean((0, 2, 3))
        powers = strength.square().mean((1, 3, 4))  # over classes, where these have strengths of their own
        parts = zip(group.names, squares.split(group.sizes), powers.split(group.sizes, 1), strict=True)
        for name, square, power in parts:
            losses[name], strengths[name] = square.mean(), power.mean(1).sqrt()
    return {name: losses[name] for name in features}, {name: strengths[name] for name in features}


def drifting_loss(x: Tensor, targets: Targets, kernel: Kernel = Kernel()) -> tuple[Tensor, Tensor]:
    """Loss and strengths (radii,) of one feature x (classes, locations, G, D)."""
    losses, strengths = drifting_losses({"x": x}, {"x": targets}, kernel)
    return losses["x"], strengths["x"]


# Statistics ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def kernel_statistics(x: Tensor, targets: Targets, radius: float, kernel: Kernel = Kernel()) -> dict[str, float | None]:
    """What the kernel of one feature sees: distances, logits, effective neighbours exp(entropy), masses of both sides.

    Distances are in units of their weighted mean, logits are -d / R; both leave out a sample itself and its own source.
    Effective neighbours are distinct samples: the masses of copies (`targets.rows`) count as one. None where nothing
    is left.
    """
    [group] = side_by_side({"x": x}, {"x": targets})
    distances = pair_distances(group)
    [scale] = feature_scales([group], [distances], kernel.shared)
    distances = normalised(distances, scale, group.masked)
    affinities = affinity(distances, group.weights, radius, kernel)
    generated, negatives = x.shape[-2], group.negatives
    seen = (~group.masked & (group.weights > 0)).expand_as(distances)
    positive, there = distances[..., negatives:], seen[..., negatives:]
    nearest = positive.where(there, torch.inf).amin(-1)
    statistics = {
        "distance_generated": distances[..., :generated][seen[..., :generated]].mean(),
        "distance_positive_mean": positive[there].mean(),
        "distance_positive_std": positive[there].std() if there.sum() > 1 else positive.new_tensor(torch.nan),
        "distance_positive_min": nearest[nearest.isfinite()].mean(),
    }
    rows = sample_numbers(targets, generated, distances.shape[-1], x.device)
    sides = {"negative": slice(None, negatives), "positive": slice(negatives, None)}
    for side, part in sides.items():
        values = affinities[..., part]
        statistics |= {
            f"{side}_mass": values.sum(-1).mean(),
            f"effective_{side}": effective_samples(values, rows[:, part]).mean(),
        } | logit_quantiles(side, -distances[..., part][seen[..., part]] / radius)
    statistics["positive_negative_mass_ratio"] = statistics["positive_mass"] / statistics["negative_mass"]
    return {name: float(value) if value.isfinite() else None for name, value in statistics.items()}


def sample_numbers(targets: Targets, generated: int, count: int, device: torch.device) -> Tensor:
    """A number (classes, M) for each target, the same for copies of one real sample."""
    numbers = torch.arange(-generated, count - generated, device=device).expand(len(targets.positives), -1)
    return numbers if targets.rows is None else torch.cat([numbers[:, :generated], targets.rows.to(device)], 1)


def effective_samples(masses: Tensor, rows: Tensor) -> Tensor:
    """exp(entropy) of masses (classes, vectors, G, targets) over distinct samples, 0 where there is no mass."""
    copies = (rows[:, :, None] == rows[:, None]).to(masses)[:, None]
    total = masses.sum(-1, keepdim=True)
    share = masses / total.clamp_min(torch.finfo(masses.dtype).tiny)
    entropy = -torch.special.xlogy(share, share @ copies).sum(-1)  # each copy with the share of all of them
    return entropy.exp() * (total[..., 0] > 0)


def logit_quantiles(side: str, logits: Tensor) -> dict[str, Tensor]:
    """The 10th, 50th and 90th percentile (nearest rank) of logits (pairs,); NaN without any."""
    ordered = logits.sort().values  # torch.quantile takes 16 million values at most
    last = len(ordered) - 1
    return {
        f"logit_{side}_p{share}": ordered[round(share / 100 * last)] if last >= 0 else logits.new_tensor(torch.nan)
        for share in (10, 50, 90)
    }
