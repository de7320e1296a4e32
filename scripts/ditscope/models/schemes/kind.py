"""What a kind of quantization scheme is: a file of this package per kind, each with its `KIND`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torchao.core.config import AOBaseConfig
from torchao.prototype.mx_formats import MXDynamicActivationMXWeightConfig
from torchao.quantization import PerAxis, PerGroup, PerRow
from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

from ditscope.core.errors import InputError
from ditscope.models.by_step import ByStep
from ditscope.models.emulate.formats import Format, activation_format, weight_format
from ditscope.models.emulate.layer import Recipe
from ditscope.models.mlx.names import MlxConfig
from ditscope.models.settings import Scheme

# torchao would tune the compiler for quantized models only, not for the base
PURE: dict = {"set_inductor_config": False}
LayerConfig: TypeAlias = AOBaseConfig | MlxConfig | Recipe | ByStep


@dataclass(frozen=True)
class Kind:
    """What a kind of scheme does to a linear layer, and what it needs of the machine."""

    config: Callable[[Scheme], LayerConfig | None]  # None: the layer stays as it is
    capability: tuple[int, int] | None = None  # least CUDA compute capability; None: runs on a CPU as well
    dtypes: tuple[str, ...] = ()  # weight types it starts from; (): any
    multiple: int = 1  # layers whose sides this does not divide stay in full precision
    never: str = ""  # why torchao cannot do it on any machine
    operator: str = ""  # of torchao's compiled kernels, which may not load
    sparse: bool = False  # keeps the two largest of every four weights


def intx(scheme: Scheme) -> torch.dtype:
    """torch.int1 ... torch.int8 of a scheme's bits."""
    if not 1 <= scheme.bits <= 8:
        raise InputError(f"schemes: `{scheme.kind}` with bits: {scheme.bits}; 1 to 8 are possible")
    return getattr(torch, f"int{scheme.bits}")


def microscaling(element: torch.dtype) -> MXDynamicActivationMXWeightConfig:
    """Microscaled weights and activations, from compute capability 10.0 on by kernels, else emulated by torchao."""
    able = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (10, 0)
    kernel = KernelPreference.AUTO if able else KernelPreference.EMULATED
    return MXDynamicActivationMXWeightConfig(activation_dtype=element, weight_dtype=element, kernel_preference=kernel)


def by_group(scheme: Scheme, row: PerRow | PerAxis) -> PerGroup | PerRow | PerAxis:
    """One scale per `group_size` inputs, or per row."""
    return PerGroup(scheme.group_size) if scheme.group_size else row


def formats(scheme: Scheme) -> tuple[Format, Format | None]:
    """The formats of an emulated scheme's weights and activations (None: full precision)."""
    weights = weight_format(scheme.format, scheme.bits, scheme.group_size)
    return weights, activation_format(scheme.activations, scheme.group_size)
