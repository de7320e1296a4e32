"""Weights, and activations where they are named, rounded to nearest in any format."""

from torch import Tensor

from ditscope.models.emulate.formats import rounded
from ditscope.models.emulate.inputs import Inputs
from ditscope.models.emulate.layer import Recipe, Solved
from ditscope.models.schemes.kind import Kind, formats


def solve(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> Solved:
    """Every group by its own range."""
    return Solved(rounded(weight, recipe.weights))


KIND = Kind(lambda scheme: Recipe(solve, *formats(scheme)))
