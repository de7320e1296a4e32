"""SDNQ (SD.Next's quantization): the arguments of an `SDNQConfig` with a weight type for every layer, as JSON.

`modules_dtype_dict` maps a type to the weights that have it, `modules_quant_config` gives those with another group
size than `group_size` their own, `modules_to_not_convert` names what stays; names end in `.weight`, else sdnq takes
them for a part of a path and matches every layer that has it. Asymmetric integers are `uint`, symmetric ones `int`,
groups of -1 whole rows. sdnq's own lists of layers and its least sizes are switched off: the plan decides.
Source: sdnq 0.2.8, `quantizer.py` (`SDNQConfig`), `utils.py` (`check_param_name_in`, `get_minimum_dtype`).
"""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from ditscope.core.atomic import write_text
from ditscope.models.exports.format import Export, Format

VERSION = "sdnq 0.2.8"
TYPES = ("int1 to int8", "uint1 to uint8", "fp8")


def write(export: Export, out: Path) -> str:
    """Write the arguments of the `SDNQConfig` that stands for a plan."""
    write_text(out, json.dumps(arguments(export), indent=1) + "\n")
    return (
        f"quantize with it: from_pretrained(..., quantization_config=sdnq.SDNQConfig(**json.load(open({str(out)!r}))))"
    )


def arguments(export: Export) -> dict[str, Any]:
    """The arguments of `SDNQConfig`. Raises InputError for a format that sdnq has not."""
    types = {f"{layer}.weight": dtype(export, layer, form) for layer, form in export.formats.items()}
    groups = {f"{layer}.weight": form.group or -1 for layer, form in export.formats.items()}
    usual, group = (Counter(values.values()).most_common(1)[0][0] for values in (types, groups))
    by_type: dict[str, list[str]] = defaultdict(list)
    for weight, name in types.items():
        by_type[name].append(weight)
    return {
        "weights_dtype": usual,
        "group_size": group,
        "modules_dtype_dict": dict(by_type),
        "modules_quant_config": {weight: {"group_size": own} for weight, own in groups.items() if own != group},
        "modules_to_not_convert": [f"{layer}.weight" for layer in export.left],
        "add_skip_keys": False,
        "minimum_allowed_numel": 0,
        "minimum_allowed_channel_size": 0,
        "use_quantized_matmul": False,
    }


def dtype(export: Export, layer: str, form: Format) -> str:
    """The name that sdnq has of a format."""
    if form.activations or form.name not in ("int", "fp8") or (form.name == "int" and form.symmetric and form.bits < 2):
        raise export.lacks("sdnq", layer, form, TYPES)
    return "float8_e4m3fn" if form.name == "fp8" else f"{'int' if form.symmetric else 'uint'}{form.bits}"
