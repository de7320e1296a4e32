"""vLLM: the `quantization_config` of a `config.json` in compressed-tensors' terms, with the layers that it ignores.

`config_groups` has a group per format, with the names of its layers as `targets`; `ignore` names the others. vLLM reads
weights of 4 or 8 bits: integers with zero points by group (32, 64, 128) or row, int8 or fp8 with dynamic activations.
Sources: compressed-tensors 0.20.1, `quantization/quant_config.py` (`QuantizationConfig`); vLLM,
`quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py` (`WNA16_ZP_SUPPORTED_TYPES_MAP`: 4 and 8 bits).
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ditscope.core.atomic import write_text
from ditscope.models.exports.format import Export, Format

VERSION = "compressed-tensors 0.20.1"
GROUPS = (0, 32, 64, 128)
HAS = "4 or 8 bit integers (by row, or in groups of 32, 64, 128), int8 and fp8 with or without activations"


def write(export: Export, out: Path) -> str:
    """Write the `quantization_config` of a plan."""
    write_text(out, json.dumps({"quantization_config": quantization_config(export)}, indent=1) + "\n")
    return f"{len(export.left)} layers ignored; merge it into the transformer's config.json"


def quantization_config(export: Export) -> dict[str, Any]:
    """The `quantization_config` of a plan. Raises InputError for a format that vLLM has not."""
    targets: dict[Format, list[str]] = defaultdict(list)
    for layer, form in export.formats.items():
        integers = form.name == "int" and form.bits in (4, 8) and form.group in GROUPS
        if not integers and (form.name != "fp8" or form.group > 0):
            raise export.lacks("vLLM", layer, form, HAS)
        targets[form].append(layer)
    groups = {f"group_{i}": group(form, layers) for i, (form, layers) in enumerate(targets.items())}
    kinds = {entry["format"] for entry in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": kinds.pop() if len(kinds) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": export.left,
    }


def group(form: Format, layers: list[str]) -> dict[str, Any]:
    """One of `config_groups`."""
    kind = {"num_bits": form.bits, "type": "float" if form.name == "fp8" else "int"}
    strategy = {0: "channel", -1: "tensor"}.get(form.group, "group")
    by_group = {"group_size": form.group} if form.group > 0 else {}
    quantized = "float-quantized" if form.name == "fp8" else "int-quantized" if form.activations else "pack-quantized"
    return {
        "targets": layers,
        "weights": kind | {"symmetric": form.symmetric, "strategy": strategy, "dynamic": False} | by_group,
        "input_activations": kind | {"symmetric": True, "strategy": "token", "dynamic": True}
        if form.activations
        else None,
        "output_activations": None,
        "format": quantized,
    }
