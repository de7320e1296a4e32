"""Torch's forward pre-hooks on a transformer that computes on MLX: its layers tell what they are given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn
from torch import Tensor

from ditscope.models.mlx.names import mmdit_paths


def hooked(transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers, by name, that have forward pre-hooks."""
    return {name: module for name, module in transformer.named_modules() if module._forward_pre_hooks}


@contextmanager
def watched(transformer: torch.nn.Module, mmdit: nn.Module) -> Iterator[None]:
    """Within the context, a layer of the MMDiT that is called calls the pre-hooks of its twin in diffusers.

    The hooks get the same input as on torch: channels first for a convolution, one tensor for a layer that the MMDiT
    splits. A hook cannot change it. Layers without hooks, of this model and of others, stay as they are.
    """
    modules = dict(mmdit.named_modules())
    twins: dict[int, tuple[torch.nn.Module, bool]] = {}
    layers: list[nn.Module] = []
    for name, module in hooked(transformer).items():
        parts_of = [modules[path] for path in mmdit_paths(name)]
        twins |= {id(layer): (module, layer is parts_of[-1]) for layer in parts_of}
        layers += parts_of
    parts: dict[torch.nn.Module, list[Tensor]] = {}
    last: tuple[Any, Tensor] = (None, torch.empty(0))

    def tell(layer: nn.Module, x: mx.array) -> None:
        nonlocal last
        module, complete = twins[id(layer)]
        if last[0] is not x:  # query, key and value read the same array: the same tensor for their hooks
            last = x, torch.from_numpy(np.array(x.astype(mx.float32)))
        parts.setdefault(module, []).append(last[1])
        if complete:
            given = parts.pop(module)
            joined = given[0] if len(given) == 1 else torch.cat(given, dim=-1)
            for hook in list(module._forward_pre_hooks.values()):
                hook(module, (joined.movedim(-1, 1) if isinstance(layer, nn.Conv2d) else joined,))

    kinds = [type(layer) for layer in layers]
    for layer, kind in zip(layers, kinds, strict=True):
        layer.__class__ = telling(kind, tell)
    try:
        yield
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind


def telling(kind: type[nn.Module], tell: Callable[[nn.Module, mx.array], None]) -> type[nn.Module]:
    """A kind of layer that calls `tell` with itself and its input before it computes."""

    def forward(layer: Any, x: mx.array) -> mx.array:
        tell(layer, x)
        return kind.__call__(layer, x)

    return type(kind.__name__, (kind,), {"__call__": forward})
