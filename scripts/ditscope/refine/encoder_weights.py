"""Weights of encoders from files."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ditscope.core.errors import InputError, parsing


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict that torch saved, float32; no pickled code is run."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a file of weights")
    with parsing(path, "no readable weights ({})", (SafetensorError, UnpicklingError, RuntimeError, EOFError)):
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no state dict of tensors")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def fits(network: nn.Module, state: Mapping[str, Tensor], path: Path, missing: tuple[str, ...] = ()) -> None:
    """Load a state dict of which only names that begin as one of `missing` may lack; one line where it does not fit."""
    wanted = network.state_dict()
    for name, value in wanted.items():
        if name not in state and name.startswith(missing):
            continue
        shape = tuple(state[name].shape) if name in state else None
        if shape != tuple(value.shape):
            raise InputError(f"{path}: `{name}` has the shape {shape}, the network wants {tuple(value.shape)}")
    if extra := sorted(state.keys() - wanted.keys()):
        raise InputError(f"{path}: `{extra[0]}` is no weight of the network")
    network.load_state_dict(dict(state), strict=False)
