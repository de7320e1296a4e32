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

KINDS = (nn.Linear, nn.QuantizedLinear, nn.Conv2d)


def hooked(transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers, by name, that have forward pre-hooks."""
    return {name: module for name, module in transformer.named_modules() if module._forward_pre_hooks}


@contextmanager
def watched(transformer: torch.nn.Module, mmdit: nn.Module) -> Iterator[None]:
    """Within the context, a layer of the MMDiT that is called calls the pre-hooks of its twin in diffusers.

    The hooks get the same input as on torch: channels first for a convolution, one tensor for a layer that the MMDiT
    splits. A hook cannot change it.
    """
    modules = dict(mmdit.named_modules())
    twins: dict[int, tuple[torch.nn.Module, bool]] = {}
    for name, module in hooked(transformer).items():
        layers = [modules[path] for path in mmdit_paths(name)]
        twins |= {id(layer): (module, layer is layers[-1]) for layer in layers}
    parts: dict[torch.nn.Module, list[Tensor]] = {}
    last: tuple[Any, Tensor] = (None, torch.empty(0))

    def tell(layer: nn.Module, x: mx.array) -> None:
        nonlocal last
        if id(layer) not in twins:
            return
        module, complete = twins[id(layer)]
        if last[0] is not x:  # query, key and value read the same array: the same tensor for their hooks
            last = x, torch.from_numpy(np.array(x.astype(mx.float32)))
        parts.setdefault(module, []).append(last[1])
        if complete:
            given = parts.pop(module)
            joined = given[0] if len(given) == 1 else torch.cat(given, dim=-1)
            for hook in list(module._forward_pre_hooks.values()):
                hook(module, (joined.movedim(-1, 1) if isinstance(layer, nn.Conv2d) else joined,))

    own = {kind: kind.__call__ for kind in KINDS}

    def telling(call: Callable[[Any, mx.array], mx.array]) -> Callable[[Any, mx.array], mx.array]:
        def forward(layer: Any, x: mx.array) -> mx.array:
            tell(layer, x)
            return call(layer, x)

        return forward

    for kind, call in own.items():
        kind.__call__ = telling(call)
    try:
        yield
    finally:
        for kind, call in own.items():
            kind.__call__ = call
