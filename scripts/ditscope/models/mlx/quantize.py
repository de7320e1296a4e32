"""Fewer bits for the MMDiT's linear layers, by MLX's own quantization, and its packed weights as a file."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import torch
from mlx import nn
from mlx.utils import tree_flatten

from ditscope.core.atomic import replacing
from ditscope.core.errors import InputError, line
from ditscope.models.families.common import DTYPES
from ditscope.models.mlx.names import MlxConfig, mmdit_paths
from ditscope.models.mlx.transformer import CLASSES, OnMlx, empty, public


def quantize(transformer: OnMlx, configs: dict[str, MlxConfig]) -> None:
    """Quantize the layers named in `configs` (as in diffusers) in place; 16 bits are bfloat16 weights."""
    paths = {path: config for layer, config in configs.items() for path in mmdit_paths(layer)}
    modules = dict(transformer.mmdit.named_modules())
    for path, config in paths.items():
        if config.bits == 16:
            modules[path].weight = modules[path].weight.astype(mx.bfloat16)

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        config = paths.get(path)
        if config is None or config.bits == 16:
            return False
        return {"bits": config.bits, "group_size": config.group_size, "mode": config.mode}

    nn.quantize(transformer.mmdit, class_predicate=predicate)
    mx.eval(transformer.mmdit.parameters())


def stored_bytes(transformer: OnMlx) -> int:
    """Bytes of the MMDiT's weights as they are: packed words, scales and biases of what is quantized."""
    return sum(value.nbytes for _, value in tree_flatten(transformer.mmdit.parameters()))


def save_checkpoint(transformer: OnMlx, configs: dict[str, MlxConfig], out: Path, record: dict[str, Any]) -> None:
    """Write the MMDiT's weights as they are to one safetensors file; `record` goes into its metadata."""
    layers = {layer: [config.bits, config.group_size, config.mode] for layer, config in configs.items()}
    dtype = str(transformer.dtype).removeprefix("torch.")
    kind = next(name for name, known in CLASSES.items() if isinstance(transformer, known))
    record = record | {
        "backend": "mlx",
        "class": kind,
        "config": public(dict(transformer.config)),
        "dtype": dtype,
        "layers": layers,
    }
    weights = dict(sorted(tree_flatten(transformer.mmdit.parameters())))
    with replacing(out) as partial, partial.open("wb") as file:  # to a path MLX would add `.safetensors`
        mx.save_safetensors(file, weights, {"ditscope": json.dumps(record, sort_keys=True)})


def load_checkpoint(path: Path, record: dict[str, Any]) -> OnMlx:
    """The transformer of a file that `save_checkpoint` wrote; `record` is what its metadata holds."""
    config = record["config"] | {"_class_name": record["class"]}
    transformer = empty(config, str(path), DTYPES[record["dtype"]], torch.device("cpu"))
    quantize(transformer, {layer: MlxConfig(*values) for layer, values in record["layers"].items()})
    try:
        transformer.mmdit.load_weights(list(mx.load(str(path)).items()))
    except ValueError as error:
        raise InputError(f"{path}: {line(error)[:300]}; make the checkpoint again") from None
    mx.eval(transformer.mmdit.parameters())
    return transformer
