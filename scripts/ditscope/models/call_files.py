"""Recorded calls of a transformer: one safetensors file per image and step, tensors as they are, the rest as JSON.

The metadata of a file (key `ditscope`) has `image_id`, `prompt_id`, `step_index`, `sigma`, `sigma_next`, `timestep`,
`guidance`, `guided` (see `models.guided`) and `calls`, each with its `args` and `options` as a tree: {"tensor": key},
{"list": [...]}, {"tuple": [...]}, {"dict": {...}}, {"dtype": name} or {"value": number, text, boolean or null}.
Tensors besides those: `x`, the latents before the step, and `prediction`, after guidance.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ditscope.core.errors import InputError, check_version, parsing
from ditscope.models.folders import check_safetensors

if TYPE_CHECKING:
    from torch import Tensor

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]  # of one call

SCHEMA_VERSION = "1"
SUFFIX = ".safetensors"


def write_calls(path: Path, about: dict[str, Any], calls: list[Arguments], tensors: "dict[str, Tensor]") -> None:
    """Write the calls of one step with what is known about it. Raises InputError for an argument of another kind."""
    from ditscope.core.tensor_files import save_tensors

    kept = dict(tensors)
    trees = [
        {"args": encode(args, f"call{i}.args", kept), "options": encode(options, f"call{i}.options", kept)}
        for i, (args, options) in enumerate(calls)
    ]
    text = json.dumps({"schema_version": SCHEMA_VERSION} | about | {"calls": trees}, sort_keys=True)
    # Of its own: two arguments may share memory.
    save_tensors({key: tensor.cpu().clone() for key, tensor in kept.items()}, path, {"ditscope": text})


def encode(value: Any, key: str, tensors: "dict[str, Tensor]") -> dict[str, Any]:
    """A value as a tree; its tensors are put into `tensors` under keys that begin with `key`."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encode(one, f"{key}.{i}", tensors) for i, one in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: encode(one, f"{key}.{name}", tensors) for name, one in value.items()}}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise InputError(f"{key}: a {type(value).__name__} cannot be recorded; only tensors, numbers, texts and lists can")


def decode(tree: dict[str, Any], tensors: "dict[str, Tensor]") -> Any:
    """The value of a tree."""
    import torch

    ((kind, inner),) = tree.items()
    if kind == "tensor":
        return tensors[inner]
    if kind in ("list", "tuple"):
        values = [decode(one, tensors) for one in inner]
        return values if kind == "list" else tuple(values)
    if kind == "dict":
        return {name: decode(one, tensors) for name, one in inner.items()}
    return getattr(torch, inner) if kind == "dtype" else inner


def about_calls(path: Path) -> dict[str, Any]:
    """What a file of recorded calls says, without its tensors. Raises InputError for any other file."""
    from safetensors import safe_open

    try:
        check_safetensors(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such calibration sample; run the calibrate stage again") from None
    with parsing(path, "no recorded calls of a transformer ({}); calibrate again"), safe_open(path, "np") as file:
        about: dict[str, Any] = json.loads((file.metadata() or {})["ditscope"])
    check_version(path, about.get("schema_version"), SCHEMA_VERSION, "calibrate again")
    return about


def read_calls(path: Path) -> "tuple[dict[str, Any], list[Arguments], dict[str, Tensor]]":
    """What a file says, its calls as (args, options), and its tensors. Raises InputError for NaN or infinite values."""
    from safetensors import safe_open

    about = about_calls(path)
    with parsing(path, "damaged recorded calls ({}); calibrate again"), safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        calls = [(decode(call["args"], tensors), decode(call["options"], tensors)) for call in about["calls"]]
    for key in ("x", "prediction"):
        if key not in tensors or not tensors[key].isfinite().all():
            raise InputError(f"{path}: tensor `{key}` is missing or has NaN or infinite values; calibrate again")
    return about, calls, tensors
