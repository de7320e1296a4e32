"""A low-rank branch in 16 bits beside weights, and activations where they are named, of few bits (SVDQuant)."""

from torch import Tensor

from ditscope.models.emulate.formats import rounded
from ditscope.models.emulate.inputs import Inputs
from ditscope.models.emulate.layer import Recipe, Solved
from ditscope.models.emulate.smoothquant import smoothing
from ditscope.models.emulate.svdquant import low_rank
from ditscope.models.schemes.kind import Kind, formats


def solve(weight: Tensor, inputs: Inputs | None, recipe: Recipe) -> Solved:
    """Smoothed weights, split into the branch and the rest, which is rounded."""
    assert inputs is not None
    factors = smoothing(inputs.absmax.to(weight), weight, recipe.alpha)
    up, down, rest = low_rank(weight * factors, recipe.rank)
    return Solved(rounded(rest, recipe.weights), factors, up, down)


KIND = Kind(
    lambda scheme: Recipe(solve, *formats(scheme), needs="inputs", smooths=True, rank=scheme.rank, alpha=scheme.alpha)
)
