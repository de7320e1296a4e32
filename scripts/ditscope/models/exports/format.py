"""What an export writes of each layer, in words that no runtime owns: its weights' format, read off its config."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditscope.core.errors import InputError
from ditscope.models.quantize import asymmetric, group_size, per_tensor, weight_bits
from ditscope.models.schemes.kind import LayerConfig

# torchao's configs by name: what their weights are, and whether activations are quantized as they come.
KINDS = {
    "IntxWeightOnlyConfig": ("int", False),
    "Int4WeightOnlyConfig": ("int", False),
    "Int8WeightOnlyConfig": ("int", False),
    "Int8DynamicActivationInt8WeightConfig": ("int", True),
    "Int8DynamicActivationIntxWeightConfig": ("int", True),
    "Float8WeightOnlyConfig": ("fp8", False),
    "Float8DynamicActivationFloat8WeightConfig": ("fp8", True),
    "NVFP4WeightOnlyConfig": ("nvfp4", False),
    "NVFP4DynamicActivationNVFP4WeightConfig": ("nvfp4", True),
    "MXDynamicActivationMXWeightConfig": ("mx", True),
    "MlxConfig": ("int", False),
}


@dataclass(frozen=True)
class Format:
    """How the weights of one layer are stored."""

    name: str  # int, fp8, mxfp8, mxfp4, nvfp4
    bits: int
    group: int = 0  # inputs of a row that share a scale; 0: the whole row; -1: the whole tensor
    symmetric: bool = True
    activations: bool = False  # are quantized too, with scales taken as they come

    def __str__(self) -> str:
        shared = {0: "by row", -1: "by tensor"}.get(self.group, f"in groups of {self.group}")
        kind = f"{'symmetric ' if self.symmetric else 'asymmetric '}int{self.bits}" if self.name == "int" else self.name
        return f"{kind} {shared}{' with activations' if self.activations else ''}"


@dataclass(frozen=True)
class Export:
    """A plan on its way to another runtime."""

    plan: str  # its file, for messages
    loaded: Mapping[str, Any]  # what that holds
    transformer: nn.Module  # without weights
    configs: Mapping[str, LayerConfig]  # torchao's of the layers that it quantizes, by their names in diffusers
    folder: Path  # of the transformer's weights, in diffusers' layout
    dtype: torch.dtype  # that they are loaded as

    def weights(self, **options: Any) -> Any:
        """The transformer with its weights."""
        return type(self.transformer).from_pretrained(self.folder, torch_dtype=self.dtype, **options)

    @property
    def formats(self) -> dict[str, Format]:
        """The format of each quantized layer. Raises InputError for weights that cannot be told in these words."""
        return {layer: self.format_of(layer, config) for layer, config in self.configs.items()}

    @property
    def left(self) -> list[str]:
        """The linear layers that stay as they are."""
        linear = [name for name, module in self.transformer.named_modules() if isinstance(module, nn.Linear)]
        return [name for name in linear if name not in self.configs]

    def format_of(self, layer: str, config: Any) -> Format:
        """The format that a config stands for."""
        name, activations = KINDS.get(type(config).__name__, ("", False))
        if name == "mx":
            block, dtype = config.block_size, str(config.weight_dtype)
            return Format("mxfp4" if "float4" in dtype else "mxfp8", 4 if "float4" in dtype else 8, block, True, True)
        if name == "nvfp4":
            return Format("nvfp4", 4, 16, True, activations)
        if not name:
            raise InputError(
                f"{self.plan}: layer `{layer}` has weights of {type(config).__name__}, which no other runtime reads; "
                "export it to torchao, or plan it with another format"
            )
        group = -1 if per_tensor(config) else group_size(config)
        asymmetrical = type(config).__name__ == "MlxConfig" or asymmetric(config)
        return Format(name, weight_bits(config), group, not asymmetrical, activations)

    def lacks(self, runtime: str, layer: str, form: Format, has: Collection[str] | str) -> InputError:
        """What is said where a runtime has no weights of a layer's format."""
        known = has if isinstance(has, str) else ", ".join(has)
        return InputError(
            f"{self.plan}: layer `{layer}` has {form} weights, which {runtime} has not; it has {known}: plan with "
            "these, or export to another runtime"
        )
