"""Sensitivity on torch: what the back end of MLX has, too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ditscope.models.loading import Generator
from ditscope.sensitivity.exact import network_of, score_layers
from ditscope.sensitivity.fast import Change, Changes, refuse_infinite

__all__ = ["collected", "network_of", "own_weight", "score_layers"]


def own_weight(model: Generator, layer: nn.Module) -> Tensor:
    """A layer's weight as it was loaded."""
    weight: Tensor = layer.weight.data
    return weight


@contextmanager
def collected(
    model: Generator, modules: Sequence[nn.Module], changes: Changes, count: int
) -> Iterator[dict[nn.Module, Tensor]]:
    """Within the context, a backward pass through a batch of `count` samples gathers <gradient, dW x> of each module.

    After it the dictionary has (samples, changes) of every module, zeros of those that the gradient did not reach.
    """
    products: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        seen = inputs[0].detach()
        output.register_hook(lambda gradient: gather(module, seen, gradient))
        return output

    def gather(module: nn.Module, seen: Tensor, gradient: Tensor) -> None:
        inner = inner_products(module, seen, gradient, changes(module))  # (halves x samples, changes)
        inner = inner.unflatten(0, (-1, count)).sum(0)
        products[module] = products[module] + inner if module in products else inner

    handles = [module.register_forward_hook(watch) for module in modules]
    try:
        yield products
    finally:
        for handle in handles:
            handle.remove()
    idle = torch.zeros_like(next(iter(products.values())))
    complete = {module: products.get(module, idle) for module in modules}
    products.clear()
    products.update(complete)
    refuse_infinite(model, products)


def inner_products(module: nn.Module, x: Tensor, gradient: Tensor, changes: Sequence[Change]) -> Tensor:
    """<gradient, dW x> by rows of the batch, (rows, len(changes)) in float64 on the CPU, for each weight change dW.

    Where a change is a function, it is of x in the place of dW x.
    """
    weights = [change for change in changes if isinstance(change, Tensor)]
    products = iter(weight_products(module, x, gradient, weights) if weights else ())
    columns = [
        next(products) if isinstance(change, Tensor) else (change(x) * gradient).flatten(1).double().sum(1)
        for change in changes
    ]
    return torch.stack([column.cpu().double() for column in columns], dim=1)


def weight_products(module: nn.Module, x: Tensor, gradient: Tensor, changes: Sequence[Tensor]) -> list[Tensor]:
    """<gradient, dW x> by rows of the batch, (rows,) for each weight change dW."""
    if isinstance(module, nn.Linear):
        # <g, dW x> = <sum over tokens of g x', dW>: one product of matrices, shared by all changes.
        outer = gradient.flatten(1, -2).mT @ x.flatten(1, -2) if x.ndim > 2 else gradient[:, :, None] * x[:, None]
        precise = torch.promote_types(outer.dtype, torch.float32)
        rows = outer.flatten(1).to(precise)
        return [rows @ change.flatten().to(precise) for change in changes]
    moved = [(module._conv_forward(x, change, None) * gradient).flatten(1) for change in changes]
    return [products.cpu().double().sum(1) for products in moved]
