"""ComfyUI: a safetensors checkpoint under the model's original names, with the format of each quantized layer.

The header's `_quantization_metadata` is `{"format_version": "1.0", "layers": {layer: {"format": ...}}}`; the same
stands beside each weight as `<layer>.comfy_quant`, the bytes of its JSON. Formats are names of ComfyUI's `QUANT_ALGOS`:
`int8_tensorwise` (int8 around zero, `weight_scale` (rows, 1) float32) and `float8_e4m3fn` (`weight_scale` a float32
scalar). Query, key and value are one layer there, which stays as it is where the plan leaves one of them.
Sources: ComfyUI, `QUANTIZATION.md` (311c014), `comfy/quant_ops.py` (0271a46), both 2026; comfy-kitchen 0.2.40.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from ditscope.core.tensor_files import save_tensors
from ditscope.models.exports.format import Export
from ditscope.models.exports.original_names import grouped, original_state, originals

VERSION = "ComfyUI format_version 1.0"
METADATA = "_quantization_metadata"
FORMATS = {("int", 8): "int8_tensorwise", ("fp8", 8): "float8_e4m3fn"}


def write(export: Export, out: Path) -> str:
    """Quantize the transformer and write it under its original names."""
    formats = layer_formats(export)
    state = original_state(export.weights(), originals(export.transformer, "ComfyUI"))
    for layer, name in formats.items():
        weight, scale = QUANTIZED[name](state[f"{layer}.weight"])
        mark = torch.frombuffer(bytearray(json.dumps({"format": name}).encode()), dtype=torch.uint8)
        state |= {f"{layer}.weight": weight, f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": mark}
    layers = {layer: {"format": name} for layer, name in formats.items()}
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_tensors(tensors, out, {METADATA: json.dumps({"format_version": "1.0", "layers": layers})})
    return f"{len(formats)} layers quantized; put it into ComfyUI's models/diffusion_models"


def layer_formats(export: Export) -> dict[str, str]:
    """ComfyUI's format of each original layer whose parts the plan quantizes. Raises InputError where it has none."""
    formats, found = export.formats, {}
    for layer, form in formats.items():
        if (form.name, form.bits) not in FORMATS:
            raise export.lacks("ComfyUI", layer, form, ("int8 (int8_tensorwise)", "fp8 (float8_e4m3fn)"))
    for name, layers in grouped(export.transformer, originals(export.transformer, "ComfyUI")).items():
        if all(layer in formats for layer in layers):
            kinds = {FORMATS[formats[layer].name, 8] for layer in layers}
            found[name] = kinds.pop() if len(kinds) == 1 else FORMATS["int", 8]
    return found


def int8_by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (rows, inputs) and their scales (rows, 1) of a weight (rows, inputs)."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (weight.float() / scale).round().clamp(-127, 127).to(torch.int8), scale


def fp8_by_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn numbers of a weight and their scale ()."""
    scale = weight.float().abs().max().clamp(min=1e-30) / torch.finfo(torch.float8_e4m3fn).max
    return (weight.float() / scale).to(torch.float8_e4m3fn), scale


QUANTIZED = {"int8_tensorwise": int8_by_row, "float8_e4m3fn": fp8_by_tensor}
