"""MLX: the `quantization` of a `config.json`: bits and group size for all layers, and for those with others their own.

The keys are the paths of DiffusionKit's MMDiT; `false` keeps a layer as it is. A loader gives the entry of a path,
where there is one, to `class_predicate` of `mlx.nn.quantize`. Asymmetric integers by group are MLX's `affine` mode.
Sources: mlx 0.32, `mlx.nn.quantize`; mlx-lm, `utils.py` (`load_model`, `class_predicate`).
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.models.bit_plan import to_mlx
from ditscope.models.exports.format import Export
from ditscope.models.mlx.names import MlxConfig, mmdit_paths

VERSION = "mlx 0.32"


def write(export: Export, out: Path) -> str:
    """Write the `quantization` of a plan."""
    entries = quantization(export)
    write_text(out, json.dumps({"quantization": entries}, indent=1) + "\n")
    return f"{sum(entry is False for entry in entries.values())} layers stay as they are"


def quantization(export: Export) -> dict[str, Any]:
    """The `quantization` of a plan. Raises InputError for bits, groups or layers that MLX has not."""
    configs = to_mlx(dict(export.loaded), export.transformer)
    (usual, _), *_ = Counter(configs.values()).most_common(1)
    entries: dict[str, Any] = {"group_size": usual.group_size, "bits": usual.bits, "mode": "affine"}
    for layer in [*configs, *(name for name in [*export.configs, *export.left] if name not in configs)]:
        entries |= {path: entry(configs.get(layer)) for path in paths(export, layer)}
    return entries


def entry(config: MlxConfig | None) -> dict[str, int] | bool:
    """What MLX does to a layer."""
    return {"group_size": config.group_size, "bits": config.bits} if config else False


def paths(export: Export, layer: str) -> tuple[str, ...]:
    """A layer's paths in the MMDiT."""
    try:
        return mmdit_paths(layer)
    except KeyError:
        raise InputError(f"{export.plan}: layer `{layer}` is none of DiffusionKit's MMDiT, which MLX runs") from None
