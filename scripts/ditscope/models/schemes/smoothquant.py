"""Outliers of the activations moved into the weights before both are rounded (SmoothQuant)."""

from torch import Tensor

from ditscope.models.emulate.formats import rounded
from ditscope.models.emulate.inputs import Inputs
from ditscope.models.emulate.layer import Recipe, Solved
from ditscope.models.emulate.smoothquant import smoothing
from ditscope.models.schemes.kind import Kind, formats


def solve(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> Solved:
    """Scaled weights, rounded, and the factors that their inputs are divided by."""
    assert inputs is not None
    factors = smoothing(inputs.absmax.to(weight), weight, recipe.alpha)
    return Solved(rounded(weight * factors, recipe.weights), factors)


KIND = Kind(lambda scheme: Recipe(solve, *formats(scheme), needs="inputs", smooths=True, alpha=scheme.alpha))
