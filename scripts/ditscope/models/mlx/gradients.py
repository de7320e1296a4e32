"""Gradients through the MMDiT: torch's autograd goes on into MLX, which takes the transformer backwards."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import torch
from mlx.utils import tree_flatten, tree_unflatten
from torch import Tensor

from ditscope.models.mlx.network import MMDiT, velocity
from ditscope.models.mlx.tensors import to_mlx_array, to_torch

Weights = dict[str, mx.array]  # of the MMDiT, by path


class Differentiable(torch.autograd.Function):
    """The velocity of an `OnMlx` as a function of its latents; going back, its `gather` gets gradients of weights."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, transformer: Any, inputs: Sequence[mx.array]) -> Tensor:
        ctx.transformer, ctx.inputs, ctx.dtype = transformer, inputs, inputs[0].dtype
        return to_torch(transformer.predict(*inputs), latents)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        transformer, upstream, gradients = ctx.transformer, to_mlx_array(gradient).astype(ctx.dtype), []
        for row in range(len(gradient)):  # one by one: the gradient of a weight is that of its own sample
            inputs = [values[row : row + 1] for values in ctx.inputs]
            latents, weights = pulled_back(transformer.mmdit, inputs, upstream[row : row + 1], transformer.wanted)
            gradients.append(latents)
            if transformer.gather:
                transformer.gather(weights)
        return to_torch(mx.concatenate(gradients), gradient), None, None


def pulled_back(
    mmdit: MMDiT, inputs: Sequence[mx.array], gradient: mx.array, wanted: Sequence[str]
) -> tuple[mx.array, Weights]:
    """Gradients of <gradient, velocity> for the latents and for the weights at the paths `wanted`.

    `inputs` are those of `ditscope.models.mlx.network.velocity`; `gradient` is shaped like the latents.
    """
    own = dict(tree_flatten(mmdit.parameters()))
    own = {path: own[path] for path in wanted}

    def inner_product(latents: mx.array, weights: Weights) -> mx.array:
        mmdit.update(tree_unflatten(list(weights.items())))
        return (velocity(mmdit, latents, *inputs[1:]) * gradient).sum()

    try:
        gradients: tuple[mx.array, Weights] = mx.grad(inner_product, argnums=(0, 1))(inputs[0], own)
        mx.eval(gradients)
    finally:
        mmdit.update(tree_unflatten(list(own.items())))  # not the placeholders that MLX traced with
    return gradients
