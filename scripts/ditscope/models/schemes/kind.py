"""What a kind of quantization scheme is: a file of this package per kind, each with its `KIND`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torchao.core.config import AOBaseConfig
from torchao.quantization import PerAxis, PerGroup, PerRow

from ditscope.core.errors import InputError
from ditscope.models.by_step import ByStep
from ditscope.models.mlx.names import MlxConfig
from ditscope.models.settings import Scheme

# torchao would tune the compiler for quantized models only, not for the base
PURE: dict = {"set_inductor_config": False}
LayerConfig: TypeAlias = AOBaseConfig | MlxConfig | ByStep


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


def by_group(scheme: Scheme, row: PerRow | PerAxis) -> PerGroup | PerRow | PerAxis:
    """One scale per `group_size` inputs, or per row."""
    return PerGroup(scheme.group_size) if scheme.group_size else row
