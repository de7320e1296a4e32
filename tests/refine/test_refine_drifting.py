"""The drifting loss against the formulas in plain float64 loops, and the properties that the method rests on."""

import math
from dataclasses import replace

import pytest
import torch

from ditscope.refine.drifting import (
    Targets,
    affinity,
    drift_coefficients,
    drifting_field,
    drifting_loss,
    kernel_statistics,
    normalised_distances,
    pairs,
    sample_alpha,
    target_weights,
    unconditional_weight,
)

RADII = [0.02, 0.05, 0.2]


def draw(seed=0, classes=2, locations=3, generated=4, unconditional=2, positives=5, size=3, alpha=(1.0, 2.5)):
    random = torch.Generator().manual_seed(seed)

    def normal(count, shift):
        return torch.randn(classes, locations, count, size, generator=random, dtype=torch.float64) + shift

    weight = unconditional_weight(torch.tensor(alpha, dtype=torch.float64), generated, unconditional)
    return normal(generated, 0.0), Targets(normal(unconditional, 0.3), normal(positives, 1.0), weight)


def reference_field(x, targets, radii, weighting, own=()):
    """V and the feature unit, one class, location, sample and target at a time."""
    classes, locations, generated, size = x.shape
    points, weights = {}, {}
    for c in range(classes):
        for n in range(locations):
            points[c, n] = [*x[c, n], *targets.unconditional[c, n], *targets.positives[c, n]]
        unconditional, positives = targets.unconditional.shape[2], targets.positives.shape[2]
        row = [1.0] * generated + [float(targets.unconditional_weight[c])] * unconditional + [1.0] * positives
        for i in range(generated):
            weights[c, i] = [0.0 if (c, i, j - generated) in own else w for j, w in enumerate(row)]
    negatives = generated + unconditional

    def distance(a, b):
        return math.sqrt(sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)))

    total = total_weight = 0.0
    d = {}
    for (c, n), y in points.items():
        for i in range(generated):
            for j, target in enumerate(y):
                d[c, n, i, j] = distance(x[c, n, i], target)
                total += weights[c, i][j] * d[c, n, i, j]
                total_weight += weights[c, i][j]
    scale = total / total_weight
    unit = scale / math.sqrt(size)
    field = torch.zeros_like(x)
    for radius in radii:
        part = torch.zeros_like(x)
        for (c, n), y in points.items():
            logits = [
                [
                    -(d[c, n, i, j] / scale + (100 if i == j or (c, i, j - generated) in own else 0)) / radius
                    + (math.log(max(weights[c, i][j], 1e-6)) if weighting == "log" else 0)
                    for j in range(len(y))
                ]
                for i in range(generated)
            ]
            rows = [sum(math.exp(v - max(row)) for v in row) for row in logits]
            columns = [[logits[i][j] for i in range(generated)] for j in range(len(y))]
            sums = [sum(math.exp(v - max(column)) for v in column) for column in columns]
            for i in range(generated):
                a = []
                for j in range(len(y)):
                    row = math.exp(logits[i][j] - max(logits[i])) / rows[i]
                    column = math.exp(logits[i][j] - max(columns[j])) / sums[j]
                    root = math.sqrt(max(row * column, 1e-6))
                    factor = weights[c, i][j] if weighting == "official" else float(weights[c, i][j] > 0)
                    a.append(root * factor)
                negative, positive = sum(a[:negatives]), sum(a[negatives:])
                for j, target in enumerate(y):
                    coefficient = a[j] * negative if j >= negatives else -a[j] * positive
                    part[c, n, i] += coefficient * (target - x[c, n, i]) / unit
        field += part / math.sqrt(float((part**2).mean()))
    return field, unit


@pytest.mark.parametrize("weighting", ["official", "log"])
@pytest.mark.parametrize("alpha", [(1.0, 2.5), (4.0, 1.3)])
def test_class_batched_field_is_the_per_class_reference(weighting, alpha):
    x, targets = draw(alpha=alpha)
    field, unit, _ = drifting_field(x, targets, RADII, weighting)
    expected, expected_unit = reference_field(x, targets, RADII, weighting)
    assert float(unit) == pytest.approx(expected_unit, rel=1e-12)
    torch.testing.assert_close(field, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighting", ["official", "log"])
def test_a_samples_own_source_is_held_out_of_its_targets(weighting):
    """Against the reference; and where the source is moved, its own sample's coefficients do not change."""
    x, targets = draw(alpha=(2.0, 3.0))
    own = torch.zeros(2, 4, 7, dtype=torch.bool)
    own[0, 1, 0] = own[0, 1, 4] = own[1, 3, 6] = True  # as an unconditional sample, and as positives
    held = replace(targets, own=own)
    field, unit, _ = drifting_field(x, held, RADII, weighting)
    expected, expected_unit = reference_field(x, targets, RADII, weighting, {(0, 1, 0), (0, 1, 4), (1, 3, 6)})
    assert float(unit) == pytest.approx(expected_unit, rel=1e-12)
    torch.testing.assert_close(field, expected, rtol=1e-9, atol=1e-9)
    y, weights, masked = pairs(x, held)
    distances, _ = normalised_distances(x, y, weights, masked)
    coefficients = drift_coefficients(affinity(distances, weights, 0.2, weighting), 6)
    assert not coefficients[0, :, 1, [4, 8]].any()
    assert coefficients[0, :, 0, [4, 8]].all()
    torch.testing.assert_close(coefficients.sum(-1), torch.zeros_like(coefficients[..., 0]), atol=1e-12, rtol=0)


def test_a_class_of_one_sample_has_no_positives_and_no_pull():
    x, targets = draw(classes=1, generated=2, unconditional=0, positives=3, alpha=(1.0,))
    lonely = replace(targets, own=torch.ones(1, 2, 3, dtype=torch.bool))
    field, _, strengths = drifting_field(x, lonely, RADII)
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
    _, unit, strengths = drifting_field(tiny[0], flat, RADII)
    assert float(unit) == 1e-3
    value = tiny[0].clone().requires_grad_()
    drifting_loss(value, flat, RADII)[0].backward()
    y = torch.cat([tiny[0], *tiny[1:]], -2)
    weights = target_weights(targets.unconditional_weight, 4, 2, 5)[:, None, None, :]
    distances = torch.cdist(tiny[0], y, compute_mode="donot_use_mm_for_euclid_dist") / 1e-3
    distances = distances + 100 * torch.eye(4, 11, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for radius, strength in zip(RADII, strengths, strict=True):
        coefficients = drift_coefficients(affinity(distances, weights, radius), 6)
        part = (coefficients @ y - coefficients.sum(-1, keepdim=True) * tiny[0]) / 1e-3
        assert float(part.square().mean().sqrt()) == pytest.approx(float(strength), rel=1e-6)
        expected += part / max(float(strength), 1e-4)
    torch.testing.assert_close(value.grad, -2 * expected / (expected.numel() * 1e-3), rtol=1e-6, atol=1e-9)


def test_float32_field_agrees_with_float64():
    x, targets = draw(size=32)
    single = Targets(targets.unconditional.float(), targets.positives.float(), targets.unconditional_weight.float())
    field, _, _ = drifting_field(x.float(), single, RADII)
    torch.testing.assert_close(field.double(), reference_field(x, targets, RADII, "official")[0], rtol=1e-3, atol=1e-3)


def test_loss_value_and_gradient_are_those_of_the_frozen_goal():
    x, targets = draw()
    field, unit = reference_field(x, targets, RADII, "official")
    x.requires_grad_()
    loss, _ = drifting_loss(x, targets, RADII)
    loss.backward()
    assert loss.item() == pytest.approx(float((field**2).mean()), rel=1e-9)
    torch.testing.assert_close(x.grad, -2 * field / (field.numel() * unit), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("weighting", ["official", "log"])
def test_coefficients_sum_to_zero(weighting):
    x, targets = draw()
    y = torch.cat([x, targets.unconditional, targets.positives], -2)
    weights = target_weights(targets.unconditional_weight, 4, 2, 5)[:, None, None, :]
    distances, _ = normalised_distances(x, y, weights)
    for radius in RADII:
        coefficients = drift_coefficients(affinity(distances, weights, radius, weighting), 6)
        assert coefficients.abs().max() > 1e-4
        torch.testing.assert_close(coefficients.sum(-1), torch.zeros_like(coefficients[..., 0]), atol=1e-12, rtol=0)
        swapped = drift_coefficients(affinity(distances, weights, radius, weighting).flip(-1), 5)
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
        strengths[shift] = drifting_field(x, targets, [0.5])[2].item()
    assert strengths[0.0] < 0.3 * strengths[2.0]


def test_descending_the_loss_moves_particles_onto_the_positives():
    random = torch.Generator().manual_seed(3)
    x = torch.randn(1, 1, 64, 2, generator=random).requires_grad_()
    positives = 0.5 * torch.randn(1, 1, 128, 2, generator=random) + torch.tensor([3.0, -2.0])
    targets = Targets(positives[:, :, :0], positives, torch.zeros(1))
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        drifting_loss(x, targets, [0.05, 0.2])[0].backward()
        optimizer.step()
    mean, std = x.detach()[0, 0].mean(0), x.detach()[0, 0].std(0)
    torch.testing.assert_close(mean, torch.tensor([3.0, -2.0]), atol=0.25, rtol=0)
    assert (std > 0.25).all()  # negatives keep them from collapsing onto one point
    assert (std < 0.9).all()


def test_a_sample_does_not_repel_itself():
    x, targets = draw()
    y = torch.cat([x, targets.unconditional, targets.positives], -2)
    weights = target_weights(targets.unconditional_weight, 4, 2, 5)[:, None, None, :]
    distances, _ = normalised_distances(x, y, weights)
    diagonal = distances[..., :4].diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal, torch.full_like(diagonal, 100.0))
    own = affinity(distances, weights, 0.2)[..., :4].diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(own, torch.full_like(own, 1e-3))  # the floor of the product, 1e-6, under the root


@pytest.mark.parametrize("weighting", ["official", "log"])
def test_guidance_weight_is_the_formula_and_alpha_one_leaves_unconditional_samples_out(weighting):
    weights = unconditional_weight(torch.tensor([1.0, 2.0, 4.0]), 8, 4)
    torch.testing.assert_close(weights, torch.tensor([0.0, 1.75, 5.25]))
    x, targets = draw(alpha=(1.0, 3.0))
    y = torch.cat([x, targets.unconditional, targets.positives], -2)
    w = target_weights(targets.unconditional_weight, 4, 2, 5)[:, None, None, :]
    distances, _ = normalised_distances(x, y, w)
    unconditional = drift_coefficients(affinity(distances, w, 0.2, weighting), 6)[..., 4:6]
    assert not unconditional[0].any()
    assert (unconditional[1] < 0).all()


def test_the_two_weightings_scale_by_w_and_by_its_root():
    distances = torch.rand(1, 1, 50, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights = torch.ones(12, dtype=torch.float64)
    weights[3] = 1e-2  # one light target among many: the softmax over targets is all but unchanged by it
    plain = affinity(distances, torch.ones_like(weights), 1.0)[..., 3]
    torch.testing.assert_close(affinity(distances, weights, 1.0)[..., 3], 1e-2 * plain)
    ratio = affinity(distances, weights, 1.0, "log")[..., 3] / plain
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.1), rtol=0.1, atol=0)


def test_locations_share_one_scale():
    x, targets = draw(locations=2)
    field, unit, _ = drifting_field(x, targets, RADII)
    stretch = torch.tensor([1.0, 10.0], dtype=torch.float64)[None, :, None, None]
    wide = Targets(targets.unconditional * stretch, targets.positives * stretch, targets.unconditional_weight)
    wide_field, wide_unit, _ = drifting_field(x * stretch, wide, RADII)
    assert wide_unit > 3 * unit
    assert not torch.allclose(wide_field[:, 0], field[:, 0], rtol=0.1)  # location 0 is the same, its scale is not
    both = Targets(targets.unconditional * 10, targets.positives * 10, targets.unconditional_weight)
    torch.testing.assert_close(drifting_field(x * 10, both, RADII)[0], field)  # scaling everything changes nothing


@pytest.mark.parametrize(("power", "below_two"), [(1.0, 0.5), (3.0, 0.8), (0.0, 1 / 3)])
def test_alpha_follows_its_power_law(power, below_two):
    draws = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    alpha = sample_alpha(draws, torch.ones_like(draws), power, 0.5)
    assert 1 <= alpha.min() <= alpha.max() <= 4
    assert (alpha <= 2).double().mean() == pytest.approx(below_two, abs=1e-4)
    atoms = sample_alpha(draws, draws.flip(0), power, 0.5)
    assert (atoms == 1).double().mean() == pytest.approx(0.5, abs=1e-3)


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
