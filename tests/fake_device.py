"""A pretend accelerator: tensors that say they lie on `meta`, hold real values, and refuse float64 as MPS does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")


class OnDevice(Tensor):
    """A tensor on the pretend accelerator; `held` has its values on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        if held.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        tensor.held = held
        return tensor

    def tolist(self) -> Any:
        """As numbers, which Torch refuses to make of tensors like this."""
        return self.held.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """Within it, tensors that are made on `DEVICE` or moved there are `OnDevice`."""

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class FromNumbers(TorchFunctionMode):
    """`torch.tensor(numbers, device=DEVICE)`, which never reaches a dispatch mode, in two steps that do."""

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is torch.tensor and options.get("device") == DEVICE:
            del options["device"]
            return func(*args, **options).to(DEVICE)
        return func(*args, **options)


def computed(func: Callable, args: Any, kwargs: dict) -> Any:
    """Run an operator on the values, and put what it returns where the real one would."""
    wrapped: list[OnDevice] = []

    def values(x: Any) -> Any:
        if isinstance(x, OnDevice):
            wrapped.append(x)
            return x.held
        return torch.device("cpu") if isinstance(x, torch.device) and x == DEVICE else x

    named = kwargs.get("device")
    held, options = tree_map(values, args), tree_map(values, kwargs)
    out = func(*held, **options)
    if wrapped and func._schema.name.endswith("_") and isinstance(args[0], OnDevice):
        return args[0]
    on_device = torch.device(named) == DEVICE if named is not None else bool(wrapped)
    if func._schema.name == "aten::copy_":
        on_device = isinstance(args[0], OnDevice)
    return tree_map(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, out) if on_device else out


def moved(module: nn.Module) -> nn.Module:
    """Put a module's parameters and buffers on the pretend accelerator, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(OnDevice(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)
    return module


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """The pretend accelerator, for as long as the context lasts."""
    with Accelerator(), FromNumbers():
        yield DEVICE
