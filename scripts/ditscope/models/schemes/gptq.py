"""Weights rounded column by column, the columns that are left making up for it (GPTQ)."""

from torch import Tensor

from ditscope.models.emulate.gptq import gptq
from ditscope.models.emulate.inputs import Inputs
from ditscope.models.emulate.layer import Recipe, Solved
from ditscope.models.schemes.kind import Kind, formats


def solve(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> Solved:
    """The weights of the least error over the calibration set that algorithm 1 finds."""
    assert inputs is not None and inputs.hessian is not None
    hessian = inputs.hessian.to(weight)
    return Solved(gptq(weight, hessian, recipe.weights, recipe.damping, recipe.act_order))


KIND = Kind(
    lambda scheme: Recipe(solve, *formats(scheme), needs="hessian", damping=scheme.damping, act_order=scheme.act_order)
)
