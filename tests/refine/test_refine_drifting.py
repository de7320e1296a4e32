"""The drifting loss against the formulas in plain float64 loops, and the properties that the method rests on."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ditscope.refine.drifting import (
    Kernel,
    Targets,
    affinity,
    drift_coefficients,
    drifting_fields,
    drifting_loss,
    drifting_losses,
    effective_samples,
    feature_scales,
    kernel_statistics,
    normalised,
    pair_distances,
    sample_alpha,
    side_by_side,
    target_weights,
    unconditional_weight,
)

RADII = (0.02, 0.05, 0.2)
SHARES = [("classes", "locations"), ("locations",), ("classes",), ()]


def draw(seed=0, classes=2, locations=3, generated=4, unconditional=2, positives=5, size=3, alpha=(1.0, 2.5)):
    random = torch.Generator().manual_seed(seed)

    def normal(count, shift):
        return torch.randn(classes, locations, count, size, generator=random, dtype=torch.float64) + shift

    weight = unconditional_weight(torch.tensor(alpha, dtype=torch.float64), generated, unconditional)
    return normal(generated, 0.0), Targets(normal(unconditional, 0.3), normal(positives, 1.0), weight)


def field_of(x, targets, kernel=Kernel()):
    """Field, unit and strengths of one feature."""
    return drifting_fields(side_by_side({"x": x}, {"x": targets}), kernel)[0]


def near_distances(x, targets):
    """Normalised distances (classes, locations, G, M) of one feature, and the pairs' weights."""
    [group] = side_by_side({"x": x}, {"x": targets})
    distances = pair_distances(group)
    [scale] = feature_scales([group], [distances], ("classes", "locations"))
    return normalised(distances, scale, group.masked), group.weights


def reference_affinity(logits, i, j, weight, kernel):
    """What target j is to sample i, from the logits of one class and location."""
    row = math.exp(logits[i][j] - max(logits[i])) / sum(math.exp(v - max(logits[i])) for v in logits[i])
    if kernel.softmax == "both":
        column = [other[j] for other in logits]
        product = row * math.exp(logits[i][j] - max(column)) / sum(math.exp(v - max(column)) for v in column)
        value = math.sqrt(max(product, 1e-6))
    else:
        value = row if kernel.softmax == "targets" else math.exp(logits[i][j])
    return value * (weight if kernel.weighting == "official" else float(weight > 0))


def reference_field(x, targets, kernel=Kernel(), own=()):
    """V and the feature units, one class, location, sample and target at a time."""
    classes, locations, generated, size = x.shape
    points, weights = {}, {}
    unconditional, positives = targets.unconditional.shape[2], targets.positives.shape[2]
    places = list(product(range(classes), range(locations)))
    for c, n in places:
        points[c, n] = [*x[c, n], *targets.unconditional[c, n], *targets.positives[c, n]]
        row = [1.0] * generated + [float(targets.unconditional_weight[c])] * unconditional + [1.0] * positives
        for i in range(generated):
            weights[c, i] = [0.0 if (c, i, j - generated) in own else w for j, w in enumerate(row)]
    negatives = generated + unconditional

    def alike(c, n):
        """The classes and locations that share their scales with this one."""
        return [
            (a, b)
            for a, b in places
            if (a == c or "classes" in kernel.shared) and (b == n or "locations" in kernel.shared)
        ]

    def distance(a, b):
        return math.sqrt(sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)))

    d = {(c, n): [[distance(x[c, n, i], y) for y in points[c, n]] for i in range(generated)] for c, n in places}
    scale, unit = {}, {}
    for place in places:
        pairs = [(a, b, i, j) for a, b in alike(*place) for i in range(generated) for j in range(len(points[a, b]))]
        total = sum(weights[a, i][j] * d[a, b][i][j] for a, b, i, j in pairs)
        scale[place] = total / sum(weights[a, i][j] for a, b, i, j in pairs)
        unit[place] = scale[place] / math.sqrt(size)
    field = torch.zeros_like(x)
    for radius in kernel.radii:
        part = torch.zeros_like(x)
        for (c, n), y in points.items():
            logits = [
                [
                    -(d[c, n][i][j] / scale[c, n] + (100 if i == j or (c, i, j - generated) in own else 0)) / radius
                    + (math.log(max(weights[c, i][j], 1e-6)) if kernel.weighting == "log" else 0)
                    for j in range(len(y))
                ]
                for i in range(generated)
            ]
            for i in range(generated):
                a = [reference_affinity(logits, i, j, weights[c, i][j], kernel) for j in range(len(y))]
                negative, positive = sum(a[:negatives]), sum(a[negatives:])
                for j, target in enumerate(y):
                    coefficient = a[j] * negative if j >= negatives else -a[j] * positive
                    part[c, n, i] += coefficient * (target - x[c, n, i]) / unit[c, n]
        for c, n in places:
            mean = torch.stack([part[a, b].square().mean() for a, b in alike(c, n)]).mean()
            field[c, n] += part[c, n] / max(math.sqrt(float(mean)), 1e-4)
    return field, torch.tensor([[unit[c, n] for n in range(locations)] for c in range(classes)], dtype=x.dtype)


@pytest.mark.parametrize("alpha", [(1.0, 2.5), (4.0, 1.3)])
@pytest.mark.parametrize("shared", SHARES)
@pytest.mark.parametrize(("weighting", "softmax"), product(["official", "log"], ["both", "targets", "none"]))
def test_class_batched_loss_and_gradient_are_the_per_class_reference_in_every_mode(weighting, softmax, shared, alpha):
    x, targets = draw(alpha=alpha)
    kernel = Kernel(RADII if softmax != "none" else (0.2, 0.5), weighting, softmax, shared)
    expected, units = reference_field(x, targets, kernel)
    field, unit, _ = field_of(x, targets, kernel)
    torch.testing.assert_close(unit[..., 0, 0].expand(2, 3), units, rtol=1e-12, atol=0)
    torch.testing.assert_close(field, expected, rtol=1e-8, atol=1e-9)
    x.requires_grad_()
    loss, _ = drifting_loss(x, targets, kernel)
    loss.backward()
    assert loss.item() == pytest.approx(float((expected**2).mean()), rel=1e-8)
    gradient = -2 * expected / (expected.numel() * units[..., None, None])
    torch.testing.assert_close(x.grad, gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("shared", SHARES)
def test_features_side_by_side_are_each_on_their_own(shared):
    """Features of equal and of other dimensions, in one call and in calls of their own."""
    shapes = {"a": (3, 3), "b": (1, 3), "c": (2, 5), "d": (4, 3)}
    drawn = {name: draw(seed, locations=n, size=d) for seed, (name, (n, d)) in enumerate(shapes.items())}
    values = {name: x.requires_grad_() for name, (x, _) in drawn.items()}
    kernel = Kernel(RADII, shared=shared)
    assert len(side_by_side(values, {name: t for name, (_, t) in drawn.items()})) == 2
    losses, strengths = drifting_losses(values, {name: t for name, (_, t) in drawn.items()}, kernel)
    assert list(losses) == list(shapes)
    sum(losses.values()).backward()
    for name, (x, targets) in drawn.items():
        alone = x.detach().clone().requires_grad_()
        loss, strength = drifting_loss(alone, targets, kernel)
        loss.backward()
        torch.testing.assert_close(losses[name], loss)
        torch.testing.assert_close(strengths[name], strength)
        torch.testing.assert_close(x.grad, alone.grad)


def test_features_of_bfloat16_are_compared_in_float32():
    x, targets = draw(size=16)
    low = [part.bfloat16() for part in (x, targets.unconditional, targets.positives)]
    high = [part.float() for part in low]
    given, exact = low[0].requires_grad_(), high[0].requires_grad_()
    loss, _ = drifting_loss(given, replace(targets, unconditional=low[1], positives=low[2]))
    expected, _ = drifting_loss(exact, replace(targets, unconditional=high[1], positives=high[2]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(given.grad, exact.grad.bfloat16())


def test_a_compiled_field_is_the_field(monkeypatch):
    """Through the tracer alone: a code generator wants a C++ compiler, and tens of seconds."""
    from ditscope.refine import drifting

    monkeypatch.setattr(drifting, "compiled", lambda function: torch.compile(function, backend="eager"))
    x, targets = draw()
    for mine, plain in zip(field_of(x, targets, Kernel(compiled=True)), field_of(x, targets), strict=True):
        torch.testing.assert_close(mine, plain)


def half_batch(rank, place):
    """Loss and gradient of one of two processes, of half of the classes each, for each way to share scales."""
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    features, targets = two_features()
    half = slice(2 * rank, 2 * rank + 2)
    mine = {
        name: Targets(t.unconditional[half], t.positives[half], t.unconditional_weight[half])
        for name, t in targets.items()
    }
    found = []
    for shared in SHARES:
        values = {name: x[half].clone().requires_grad_() for name, x in features.items()}
        losses, strengths = drifting_losses(values, mine, Kernel(RADII, shared=shared))
        sum(losses.values()).backward()
        found.append((sum(losses.values()).item(), {name: x.grad for name, x in values.items()}, strengths))
    torch.save(found, place / f"{rank}.pt")
    dist.destroy_process_group()


def two_features():
    """Two features of four classes, the last two of which are spread ten times as wide."""
    drawn = {
        name: draw(seed, classes=4, size=size, alpha=(1, 2, 3, 4)) for name, seed, size in (("a", 0, 3), ("b", 1, 6))
    }
    wide = torch.tensor([1.0, 1.0, 10.0, 10.0], dtype=torch.float64)[:, None, None, None]
    features = {name: x * wide for name, (x, _) in drawn.items()}
    return features, {
        name: replace(t, unconditional=t.unconditional * wide, positives=t.positives * wide)
        for name, (_, t) in drawn.items()
    }


def test_two_ranks_are_one_batch_of_twice_the_classes(tmp_path):
    """Two gloo processes: as DDP averages it, loss and gradient are those of one batch that has the classes of both."""
    mp.spawn(half_batch, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for shared, (loss, gradient, strength), (other_loss, other_gradient, _) in zip(SHARES, first, second, strict=True):
        features, targets = two_features()
        values = {name: x.requires_grad_() for name, x in features.items()}
        losses, strengths = drifting_losses(values, targets, Kernel(RADII, shared=shared))
        sum(losses.values()).backward()
        assert (loss + other_loss) / 2 == pytest.approx(sum(losses.values()).item(), rel=1e-12)
        for name, x in values.items():
            both = torch.cat([gradient[name], other_gradient[name]]) / 2
            torch.testing.assert_close(both, x.grad, rtol=1e-10, atol=1e-14)
            if "classes" in shared:
                torch.testing.assert_close(strength[name], strengths[name], rtol=1e-10, atol=0)


@pytest.mark.parametrize("weighting", ["official", "log"])
def test_a_samples_own_source_is_held_out_of_its_targets(weighting):
    """Against the reference; and where the source is moved, its own sample's coefficients do not change."""
    x, targets = draw(alpha=(2.0, 3.0))
    own = torch.zeros(2, 4, 7, dtype=torch.bool)
    own[0, 1, 0] = own[0, 1, 4] = own[1, 3, 6] = True  # as an unconditional sample, and as positives
    held, kernel = replace(targets, own=own), Kernel(RADII, weighting)
    field, unit, _ = field_of(x, held, kernel)
    expected, units = reference_field(x, targets, kernel, {(0, 1, 0), (0, 1, 4), (1, 3, 6)})
    torch.testing.assert_close(unit[..., 0, 0].expand(2, 3), units, rtol=1e-12, atol=0)
    torch.testing.assert_close(field, expected, rtol=1e-9, atol=1e-9)
    distances, weights = near_distances(x, held)
    coefficients = drift_coefficients(affinity(distances, weights, 0.2, kernel), 6)
    assert not coefficients[0, :, 1, [4, 8]].any()
    assert coefficients[0, :, 0, [4, 8]].all()
    torch.testing.assert_close(coefficients.sum(-1), torch.zeros_like(coefficients[..., 0]), atol=1e-12, rtol=0)


def test_a_class_of_one_sample_has_no_positives_and_no_pull():
    x, targets = draw(classes=1, generated=2, unconditional=0, positives=3, alpha=(1.0,))
    lonely = replace(targets, own=torch.ones(1, 2, 3, dtype=torch.bool))
    field, _, strengths = field_of(x, lonely)
    assert not field.any()
    assert not strengths.any()
    statistics = kernel_statistics(x, lonely, 0.2)
    assert statistics["distance_positive_mean"] is None
    assert statistics["effective_positive"] == statistics["positive_mass"] == 0


def test_scales_are_clipped_as_in_the_official_release():
    """A feature that hardly varies: S / sqrt(D) is held at 1e-3 and the strength of a field at 1e-4."""
    x, targets = draw()
    tiny = [0.5 + 1e-6 * part for part in (x, targets.unconditional, targets.positives)]
    flat = Targets(tiny[1], tiny[2], targets.unconditional_weight)
    _, unit, strengths = field_of(tiny[0], flat)
    assert (unit == 1e-3).all()
    value = tiny[0].clone().requires_grad_()
    drifting_loss(value, flat)[0].backward()
    y = torch.cat([tiny[0], *tiny[1:]], -2)
    weights = target_weights(targets.unconditional_weight, 4, 2, 5)[:, None, None, :]
    distances = torch.cdist(tiny[0], y, compute_mode="donot_use_mm_for_euclid_dist") / 1e-3
    distances = distances + 100 * torch.eye(4, 11, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for radius, strength in zip(RADII, strengths[:, 0, 0, 0, 0], strict=True):
        coefficients = drift_coefficients(affinity(distances, weights, radius), 6)
        part = (coefficients @ y - coefficients.sum(-1, keepdim=True) * tiny[0]) / 1e-3
        assert float(part.square().mean().sqrt()) == pytest.approx(float(strength), rel=1e-6)
        expected += part / max(float(strength), 1e-4)
    torch.testing.assert_close(value.grad, -2 * expected / (expected.numel() * 1e-3), rtol=1e-6, atol=1e-9)


def test_float32_field_agrees_with_float64():
    x, targets = draw(size=32)
    single = Targets(targets.unconditional.float(), targets.positives.float(), targets.unconditional_weight.float())
    field, _, _ = field_of(x.float(), single)
    torch.testing.assert_close(field.double(), reference_field(x, targets)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weighting", ["official", "log"])
def test_coefficients_sum_to_zero(weighting):
    x, targets = draw()
    distances, weights = near_distances(x, targets)
    for radius in RADII:
        coefficients = drift_coefficients(affinity(distances, weights, radius, Kernel(weighting=weighting)), 6)
        assert coefficients.abs().max() > 1e-4
        torch.testing.assert_close(coefficients.sum(-1), torch.zeros_like(coefficients[..., 0]), atol=1e-12, rtol=0)
        swapped = drift_coefficients(affinity(distances, weights, radius, Kernel(weighting=weighting)).flip(-1), 5)
        torch.testing.assert_close(swapped.flip(-1), -coefficients)


def test_field_vanishes_where_negatives_and_positives_coincide():
    x, _ = draw()
    points = torch.randn(2, 3, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.cat([points, points], -2)
    for radius in RADII:
        coefficients = drift_coefficients(affinity(torch.cdist(x, y), torch.ones(1, 12), radius), 6)
        field = coefficients @ y - coefficients.sum(-1, keepdim=True) * x
        torch.testing.assert_close(field, torch.zeros_like(field), atol=1e-12, rtol=0)


def test_field_weakens_where_both_sets_have_one_distribution():
    strengths = {}
    for shift in (0.0, 2.0):
        random = torch.Generator().manual_seed(2)
        x = torch.randn(1, 1, 256, 2, generator=random)
        positives = torch.randn(1, 1, 256, 2, generator=random) + shift
        targets = Targets(x[:, :, :0], positives, torch.zeros(1))
        strengths[shift] = field_of(x, targets, Kernel((0.5,)))[2].item()
    assert strengths[0.0] < 0.3 * strengths[2.0]


def test_descending_the_loss_moves_particles_onto_the_positives():
    random = torch.Generator().manual_seed(3)
    x = torch.randn(1, 1, 64, 2, generator=random).requires_grad_()
    positives = 0.5 * torch.randn(1, 1, 128, 2, generator=random) + torch.tensor([3.0, -2.0])
    targets = Targets(positives[:, :, :0], positives, torch.zeros(1))
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        drifting_loss(x, targets, Kernel((0.05, 0.2)))[0].backward()
        optimizer.step()
    mean, std = x.detach()[0, 0].mean(0), x.detach()[0, 0].std(0)
    torch.testing.assert_close(mean, torch.tensor([3.0, -2.0]), atol=0.25, rtol=0)
    assert (std > 0.25).all()  # negatives keep them from collapsing onto one point
    assert (std < 0.9).all()


def test_a_sample_does_not_repel_itself():
    x, targets = draw()
    distances, weights = near_distances(x, targets)
    diagonal = distances[..., :4].diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal, torch.full_like(diagonal, 100.0))
    own = affinity(distances, weights, 0.2)[..., :4].diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(own, torch.full_like(own, 1e-3))  # the floor of the product, 1e-6, under the root


@pytest.mark.parametrize("weighting", ["official", "log"])
def test_guidance_weight_is_the_formula_and_alpha_one_leaves_unconditional_samples_out(weighting):
    weights = unconditional_weight(torch.tensor([1.0, 2.0, 4.0]), 8, 4)
    torch.testing.assert_close(weights, torch.tensor([0.0, 1.75, 5.25]))
    x, targets = draw(alpha=(1.0, 3.0))
    distances, w = near_distances(x, targets)
    unconditional = drift_coefficients(affinity(distances, w, 0.2, Kernel(weighting=weighting)), 6)[..., 4:6]
    assert not unconditional[0].any()
    assert (unconditional[1] < 0).all()


def test_the_two_weightings_scale_by_w_and_by_its_root():
    distances = torch.rand(1, 1, 50, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights = torch.ones(12, dtype=torch.float64)
    weights[3] = 1e-2  # one light target among many: the softmax over targets is all but unchanged by it
    plain = affinity(distances, torch.ones_like(weights), 1.0)[..., 3]
    torch.testing.assert_close(affinity(distances, weights, 1.0)[..., 3], 1e-2 * plain)
    ratio = affinity(distances, weights, 1.0, Kernel(weighting="log"))[..., 3] / plain
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.1), rtol=0.1, atol=0)


def test_locations_share_one_scale():
    x, targets = draw(locations=2)
    field, unit, _ = field_of(x, targets)
    stretch = torch.tensor([1.0, 10.0], dtype=torch.float64)[None, :, None, None]
    wide = Targets(targets.unconditional * stretch, targets.positives * stretch, targets.unconditional_weight)
    wide_field, wide_unit, _ = field_of(x * stretch, wide)
    assert (wide_unit > 3 * unit).all()
    assert not torch.allclose(wide_field[:, 0], field[:, 0], rtol=0.1)  # location 0 is the same, its scale is not
    both = Targets(targets.unconditional * 10, targets.positives * 10, targets.unconditional_weight)
    torch.testing.assert_close(field_of(x * 10, both)[0], field)  # scaling everything changes nothing


@pytest.mark.parametrize(("power", "below_two"), [(1.0, 0.5), (3.0, 0.8), (0.0, 1 / 3)])
def test_alpha_follows_its_power_law(power, below_two):
    draws = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    alpha = sample_alpha(draws, torch.ones_like(draws), power, 0.5)
    assert 1 <= alpha.min() <= alpha.max() <= 4
    assert (alpha <= 2).double().mean() == pytest.approx(below_two, abs=1e-4)
    atoms = sample_alpha(draws, draws.flip(0), power, 0.5)
    assert (atoms == 1).double().mean() == pytest.approx(0.5, abs=1e-3)


def test_alpha_is_one_of_the_choices_as_often_as_the_others():
    draws = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    alpha = sample_alpha(draws, torch.zeros_like(draws), 3.0, 1.0, (1.0, 2.0, 4.0))
    assert [(alpha == value).sum().item() for value in (1, 2, 4)] == [1000] * 3


def test_effective_neighbours_are_distinct_samples():
    """Two positives eight times each are two neighbours; without numbers every target is a sample of its own."""
    masses = torch.rand(1, 1, 3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    copies = masses.repeat_interleave(8, -1) / 8
    rows = torch.tensor([[7] * 8 + [3] * 8])
    torch.testing.assert_close(effective_samples(copies, rows), effective_samples(masses, torch.tensor([[7, 3]])))
    even = torch.ones(1, 1, 1, 16, dtype=torch.float64)
    assert effective_samples(even, rows).item() == pytest.approx(2)
    assert effective_samples(even, torch.arange(16)[None]).item() == pytest.approx(16)
    x, targets = draw(classes=1, positives=1, unconditional=0, alpha=(1.0,))
    copied = replace(targets, positives=targets.positives.expand(-1, -1, 6, -1), rows=torch.full((1, 6), 2))
    assert kernel_statistics(x, copied, 0.2)["effective_positive"] == pytest.approx(1)
    assert kernel_statistics(x, replace(copied, rows=None), 0.2)["effective_positive"] == pytest.approx(6)


def test_logits_are_those_of_the_pairs_that_count():
    """Percentiles over pairs that are not masked; unconditional samples of weight 0 are not among them."""
    x, targets = draw(classes=1, alpha=(1.0,))
    distances, _ = near_distances(x, targets)
    statistics = kernel_statistics(x, targets, 0.2)
    positive = (-distances[..., 6:] / 0.2).flatten().sort().values
    off = ~torch.eye(4, dtype=torch.bool)
    negative = (-distances[..., :4] / 0.2)[:, :, off].flatten().sort().values
    for side, values in (("positive", positive), ("negative", negative)):
        for share in (10, 50, 90):
            expected = values[round(share / 100 * (len(values) - 1))].item()
            assert statistics[f"logit_{side}_p{share}"] == pytest.approx(expected)


def test_no_unconditional_samples_are_no_error():
    x, targets = draw(unconditional=0, alpha=(1.0, 3.0))
    loss, _ = drifting_loss(x.requires_grad_(), targets)
    loss.backward()
    assert x.grad.isfinite().all()
    assert kernel_statistics(x.detach(), targets, 0.2)["positive_mass"] > 0


def test_kernel_statistics_of_a_known_arrangement():
    """All targets of a side equally far: as many effective neighbours as there are targets, masses in proportion."""
    x = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    x[0, 0, 1, 0] = 1.0
    ring = torch.tensor([[0.5, 2.0, 0], [0.5, -2.0, 0], [0.5, 0, 2.0], [0.5, 0, -2.0]], dtype=torch.float64)
    targets = Targets(x[:, :, :0], ring[None, None], torch.zeros(1, dtype=torch.float64))
    statistics = kernel_statistics(x, targets, 0.2)
    assert statistics["effective_positive"] == pytest.approx(4.0)
    assert statistics["distance_positive_std"] == pytest.approx(0.0, abs=1e-12)
    assert statistics["distance_positive_mean"] > statistics["distance_generated"] > 0
    ratio = statistics["positive_mass"] / statistics["negative_mass"]
    assert statistics["positive_negative_mass_ratio"] == pytest.approx(ratio)
