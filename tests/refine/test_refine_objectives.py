"""What a refiner is trained on, each objective's loss and gradient against a float64 reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_refine_drifting import RADII, Kernel, reference_field

from ditscope.core.errors import InputError
from ditscope.core.settings import decode
from ditscope.refine.batches import Batch
from ditscope.refine.drifting import Targets
from ditscope.refine.objectives import OBJECTIVES, Step, by_class
from ditscope.refine.refiner import RefinerInput
from ditscope.refine.settings import Refine

CLASSES, GENERATED, TOKENS, SIZE = 2, 3, 4, 2
SETTINGS = replace(
    Refine(), classes_per_step=CLASSES, generated_per_class=GENERATED, radii=list(RADII), drifting_weight=0.7
)


def step(refined: torch.Tensor, clean: torch.Tensor, calls: list) -> tuple[Step, dict[str, Targets]]:
    """A step whose features are the tokens and, stretched, their means; targets are drawn."""
    random = torch.Generator().manual_seed(1)
    batch = len(refined)
    marks, one = torch.zeros(batch, TOKENS), torch.ones(batch)
    inputs = RefinerInput(clean, marks.bool(), marks, marks, marks[..., None], marks.bool(), one.long(), one)
    weight = torch.tensor([0.0, 0.8], dtype=torch.float64)
    targets = {
        name: Targets(
            torch.randn(CLASSES, locations, 2, SIZE, generator=random, dtype=torch.float64),
            torch.randn(CLASSES, locations, 4, SIZE, generator=random, dtype=torch.float64),
            weight,
        )
        for name, locations in (("tokens", TOKENS), ("mean", 1))
    }

    def features():
        calls.append(1)
        return {"tokens": refined, "mean": 3 * refined.mean(1, keepdim=True)}, targets

    return Step(refined, Batch(inputs, clean, None), features), targets


def reference(refined, clean, targets, wanted):
    """Loss and gradient of one objective in float64, from the field of the per-class loops."""
    paired = sum((float(a) - float(b)) ** 2 for a, b in zip(refined.ravel(), clean.ravel(), strict=True))
    paired, slope = paired / refined.numel(), 2 * (refined - clean) / refined.numel()
    if wanted == "paired":
        return paired, slope
    drifting, drift = 0.0, torch.zeros_like(refined)
    for name, feature, back in (
        ("tokens", refined, lambda g: g),
        ("mean", 3 * refined.mean(1, keepdim=True), lambda g: 3 * g.expand(-1, TOKENS, -1) / TOKENS),
    ):
        field, units = reference_field(by_class(feature, CLASSES), targets[name], Kernel(RADII))
        drifting += float((field**2).mean())
        gradient = -2 * field / (field.numel() * units[..., None, None])
        drift += back(gradient.transpose(1, 2).flatten(0, 1))
    if wanted == "drifting":
        return drifting, drift
    return paired + 0.7 * drifting / 2, slope + 0.7 * drift / 2


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_loss_and_gradient_are_the_reference(name):
    random = torch.Generator().manual_seed(0)
    refined, clean = torch.randn(2, CLASSES * GENERATED, TOKENS, SIZE, generator=random, dtype=torch.float64)
    value, calls = refined.clone().requires_grad_(), []
    given, targets = step(value, clean, calls)
    loss, numbers = OBJECTIVES[name](given, SETTINGS)
    loss.backward()
    expected, gradient = reference(refined, clean, targets, name)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-12)
    assert (name == "paired") == (not calls)  # features cost time, and are made only where they count
    assert ("field_strength_R0.2" in numbers) == (name != "paired")
    assert np.isfinite(list(numbers.values())).all()


def test_both_terms_of_the_sum_are_told():
    random = torch.Generator().manual_seed(2)
    refined, clean = torch.randn(2, CLASSES * GENERATED, TOKENS, SIZE, generator=random, dtype=torch.float64)
    given, _ = step(refined, clean, [])
    loss, numbers = OBJECTIVES["sum"](given, SETTINGS)
    assert loss.item() == pytest.approx(numbers["loss_paired"] + 0.7 * numbers["loss_drifting"])
    assert numbers["loss_paired"] == pytest.approx(OBJECTIVES["paired"](given, SETTINGS)[0].item())
    assert numbers["loss_drifting"] == pytest.approx(OBJECTIVES["drifting"](given, SETTINGS)[0].item() / 2)


def test_every_objective_is_a_choice_of_the_config():
    for name in OBJECTIVES:
        assert decode(Refine, {"objective": name}).objective == name
    with pytest.raises(InputError, match=r"refine\.objective: .*pared"):
        decode(Refine, {"objective": "pared"}, "refine")
