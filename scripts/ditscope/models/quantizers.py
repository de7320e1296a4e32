"""Weight quantizers as pure functions: what a weight becomes at a bit width; and which layers have one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ditscope.models.packed import effective_group_size

Quantizer = Callable[[Tensor, int, int], Tensor]


def palettize(weight: Tensor, bits: int, group_size: int = 0) -> Tensor:
    """Round to 2^bits evenly spaced levels between the tensor's minimum and maximum; a constant tensor is unchanged.

    One palette serves the whole tensor, so `group_size` has no effect.
    """
    values = weight.float()
    low, high = values.min(), values.max()
    if low == high:
        return weight.clone()
    step = (high - low) / (2**bits - 1)
    return (((values - low) / step).round() * step + low).to(weight.dtype)


def group_affine(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Asymmetric integer quantization: every `group_size` weights of a row share a scale and an integer zero point.

    The range of a group always includes zero, so that zero stays exact (torchao's MappingType.ASYMMETRIC). 0, or a size
    that does not divide the row, takes the whole row as one group. A row is all weights of one output channel.
    """
    rows = weight.float().reshape(weight.shape[0], -1)
    groups = rows.reshape(-1, effective_group_size(rows.shape[1], group_size))
    low = groups.amin(1, keepdim=True).clamp(max=0)
    high = groups.amax(1, keepdim=True).clamp(min=0)
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(min=torch.finfo(torch.float32).smallest_normal)
    zero = (-low / scale).round().clamp(0, top)
    levels = ((groups / scale).round() + zero).clamp(0, top)
    return ((levels - zero) * scale).reshape(weight.shape).to(weight.dtype)


QUANTIZERS: dict[str, Quantizer] = {"palettize": palettize, "group": group_affine}


def shared_weights(weight: Tensor, quantizer: str, group_size: int) -> int:
    """Weights that share one scale and zero point: a group, or the whole tensor for `palettize`."""
    if quantizer == "palettize":
        return weight.numel()
    return effective_group_size(weight[0].numel(), group_size)


def quantizable(transformer: nn.Module) -> dict[str, nn.Module]:
    """Every linear and convolution layer by its fully qualified name, modulation layers included, in module order."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: module for name, module in transformer.named_modules() if isinstance(module, kinds)}
