"""Whether quantization took effect: what each linear layer is afterwards, and how far it is from what it was."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ditscope.models.quantize import tensor_bytes


def watch_inputs(layers: Mapping[str, nn.Module], seen: dict[str, Tensor]) -> list[Any]:
    """Keep in `seen` what enters each layer at its last call, until the hooks that are returned are removed."""

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[name] = given[0].detach().clone()

        return hook

    return [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]


@torch.no_grad()
def effect_of(own: nn.Linear, after: nn.Module, x: Tensor | None, meant: bool, why: str) -> dict[str, Any]:
    """What quantization did to a linear layer: type and bytes of its weight, relative errors of weight and output.

    `x` is what entered the layer; without it the output's error is null, and the weight's is null where it cannot be
    turned back. `meant` says whether the scheme covers the layer, `why` why not. A layer that was meant and is as it
    was is `not applied`.
    """
    weight = getattr(after, "weight", None)
    held = weight.data if isinstance(weight, nn.Parameter) else weight
    values = plain_values(held) if held is not None else None
    weight_error = None if values is None else relative(own.weight, values.to(own.weight))
    output_error = None if x is None else relative(own(x), after(x).to(own.weight.dtype))
    as_it_was = (
        isinstance(held, Tensor) and type(held) is type(own.weight.data) and not weight_error and not output_error
    )
    finding = "" if not (meant and as_it_was) else "not applied: the scheme covers this layer, and it is as it was"
    return {
        "weight_type": type(held).__name__,
        "stored_bytes": sum(tensor_bytes(t) for t in after.parameters()) - bias_bytes(after),
        "full_bytes": own.weight.nbytes,
        "weight_error": weight_error,
        "output_error": output_error,
        "left_because": "" if meant else why,
        "finding": finding,
    }


def plain_values(weight: Tensor) -> Tensor | None:
    """A weight in full precision, also where a tensor subclass holds it; None where that cannot be turned back."""
    if not hasattr(weight, "__tensor_flatten__"):
        return weight
    try:
        found: Tensor = weight.dequantize()
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    return found


def bias_bytes(layer: nn.Module) -> int:
    """Bytes of a layer's bias."""
    bias = getattr(layer, "bias", None)
    return tensor_bytes(bias) if isinstance(bias, Tensor) else 0


def relative(reference: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64."""
    reference, other = reference.double().cpu(), other.double().cpu()
    return float((other - reference).norm() / reference.norm().clamp(min=torch.finfo(torch.float64).tiny))
