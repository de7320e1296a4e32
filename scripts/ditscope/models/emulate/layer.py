"""Emulated layers: what a recipe makes of a linear layer, computed in the model's own type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from ditscope.core.errors import InputError
from ditscope.models.emulate.formats import Format, activation_format, rounded, stored_bits
from ditscope.models.emulate.inputs import Inputs
from ditscope.models.packed import SCALE_BITS


@dataclass(frozen=True)
class Solved:
    """A layer's weights (out, in) as their format has them, and what is kept in 16 bits beside them."""

    weight: Tensor
    smoothing: Tensor | None = None  # (in,): inputs are divided by it
    up: Tensor | None = None  # (out, rank) and (rank, in): the low-rank branch
    down: Tensor | None = None


@dataclass(frozen=True)
class Recipe(AOBaseConfig):
    """What a kind does to a linear layer that no kernel here does: weights and inputs are rounded, computed in floats.

    `solve` takes the weights (out, in), the layer's inputs during calibration and this recipe. torchao's `quantize_`
    applies one that needs no calibration as its own configs.
    """

    solve: Callable[[Tensor, Inputs | None, "Recipe"], Solved]
    weights: Format
    activations: Format | None = None  # None: full precision
    needs: str = ""  # of calibration: "" nothing, "inputs", "hessian" (inputs and their Hessian)
    smooths: bool = False
    rank: int = 0
    damping: float = 0.01
    act_order: bool = False
    alpha: float = 0.5

    @property
    def bits(self) -> int:
        """Bits of a quantized weight, without scales."""
        return self.weights.bits

    @property
    def divides(self) -> tuple[int, ...]:
        """Sizes of the groups that a row of weights must be divided by."""
        return tuple(kind.group for kind in (self.weights, self.activations) if kind and kind.group)

    def bits_of(self, rows: int, row: int) -> int:
        """Bits of a weight (rows, row): codes, scales, zero points, and what stands beside them in 16 bits."""
        beside = row * self.smooths + min(self.rank, rows, row) * (rows + row)
        return stored_bits(self.weights, (rows, row)) + SCALE_BITS * beside


class EmulatedLinear(nn.Linear):
    """A linear layer of which weights, inputs or both are rounded: Q(x / s) Q(W)' + (x / s) L2' L1' + bias."""

    def __init__(self, layer: nn.Linear, solved: Solved, activations: Format | None) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, "meta")
        weight, self.activations = layer.weight, activations
        self.weight = nn.Parameter(solved.weight.to(weight).contiguous(), requires_grad=False)
        self.bias = layer.bias
        for name in ("smoothing", "up", "down"):
            value = getattr(solved, name)
            self.register_buffer(name, None if value is None else value.to(weight).contiguous())

    def described(self) -> dict[str, Any]:
        """What rebuilds the layer around its tensors: see `hollow`."""
        kind = self.activations
        beside = {name: list(tensor.shape) for name, tensor in self.named_buffers()}
        return {"activations": [kind.name, kind.group] if kind else None, "beside": beside}

    def forward(self, x: Tensor) -> Tensor:
        if self.smoothing is not None:
            x = x / self.smoothing
        # Codes of 8 bits are beyond what half precision holds.
        y = F.linear(rounded(x.float(), self.activations).to(x) if self.activations else x, self.weight, self.bias)
        return y if self.up is None else y + F.linear(F.linear(x, self.down), self.up)


def hollow(layer: nn.Linear, described: dict[str, Any]) -> EmulatedLinear:
    """An emulated layer as a checkpoint describes it, in the place of a linear one; its tensors are still to load."""
    beside = {name: torch.empty(shape, device="meta") for name, shape in described["beside"].items()}
    kind = activation_format(*described["activations"]) if described["activations"] else None
    return EmulatedLinear(layer, Solved(layer.weight, **beside), kind)


@register_quantize_module_handler(Recipe)
def emulated(layer: nn.Linear, recipe: Recipe, inputs: Inputs | None = None) -> EmulatedLinear:
    """A linear layer under a recipe, in the layer's type; solved in float64 on a CPU, else in float32."""
    if recipe.needs and inputs is None:
        raise InputError("this scheme is solved from recorded inputs; give a calibration set")
    precise = torch.float64 if layer.weight.device.type == "cpu" else torch.float32
    solved = recipe.solve(layer.weight.detach().to(precise), inputs, recipe)
    return EmulatedLinear(layer, solved, recipe.activations)
