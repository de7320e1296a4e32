"""Weights rounded after their input channels are scaled by what activations need (AWQ)."""

from torch import Tensor

from ditscope.models.emulate.awq import awq
from ditscope.models.emulate.inputs import Inputs
from ditscope.models.emulate.layer import Recipe, Solved
from ditscope.models.schemes.kind import Kind, formats


def solve(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> Solved:
    """The scales of the least error over the calibration set, and the weights under them."""
    assert inputs is not None and inputs.hessian is not None
    return Solved(*awq(weight, inputs.absmean.to(weight), inputs.hessian.to(weight), recipe.weights))


KIND = Kind(lambda scheme: Recipe(solve, *formats(scheme), needs="hessian", smooths=True))
