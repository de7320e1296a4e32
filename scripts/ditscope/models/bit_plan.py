"""Bit plans as files: read, and exported to torchao and MLX."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditscope.core.errors import InputError, check_version, read_json
from ditscope.models.mlx.names import MLX_BITS, MLX_GROUPS, MlxConfig, row_lengths
from ditscope.models.packed import effective_group_size

if TYPE_CHECKING:
    from torch import nn
    from torchao.quantization import FqnToConfig

SCHEMA_VERSION = "1"


def load_plan(path: Path | str, transformer: "nn.Module | None" = None) -> dict[str, Any]:
    """Read a plan; with `transformer`, check that every layer of the plan is one of its linear layers."""
    what = "not a bit plan (JSON with `layers`: name -> bits); run the plan stage again"
    try:
        loaded = read_json(path, what)
    except FileNotFoundError:
        raise InputError(f"{path}: no such plan; run the plan stage first") from None
    layers = loaded.get("layers")
    if not isinstance(layers, dict) or not all(type(bits) is int for bits in layers.values()):
        raise InputError(f"{path}: {what}")
    check_version(path, loaded.get("schema_version"), SCHEMA_VERSION, "run the plan stage again")
    for layer, bits in layers.items():
        if not 1 <= bits <= 8:
            raise InputError(f"{path}: layer `{layer}` has {bits} bits; 1 to 8 can be exported")
    if transformer is not None:
        from ditscope.models.quantizers import quantizable

        known = quantizable(transformer)
        for layer in layers:
            if layer not in known:
                raise InputError(
                    f"{path}: the model has no layer `{layer}`; make the plan from this model's sensitivity"
                )
            if known[layer].weight.ndim != 2:
                raise InputError(f"{path}: layer `{layer}` is a convolution, which no back end quantizes; leave it out")
    return loaded


def to_fqn_config(plan: dict[str, Any], transformer: "nn.Module") -> "FqnToConfig":
    """Export a plan to torchao: for each layer weight-only integers of its bits, asymmetric, by group or by row.

    Apply it with `quantize_(transformer, config, filter_fn=None)`. The weights are then those that the sensitivity
    stage measured with quantizer `group`; torchao has no palettes, so a `palettize` plan only keeps its bits.
    """
    import torch
    from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup

    from ditscope.models.quantizers import quantizable

    layers = quantizable(transformer)
    configs = {}
    for layer, bits in plan["layers"].items():
        row = layers[layer].weight.shape[1:].numel()
        group = effective_group_size(row, plan["group_size"])
        configs[layer] = IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"),
            granularity=PerGroup(group) if group < row else PerAxis(0),
            mapping_type=MappingType.ASYMMETRIC,
        )
    return FqnToConfig(configs)


def to_mlx(plan: dict[str, Any], transformer: "nn.Module") -> dict[str, MlxConfig]:
    """Export a plan to MLX: bits and group size of each layer that MLX can pack, by the layer's name in diffusers.

    `ditscope.models.mlx.quantize.quantize` applies it. A layer whose rows the group size does not divide is left out
    and stays in full precision: MLX has no groups of a whole row (a plan that was made for MLX holds none). Raises
    InputError for bits or groups that MLX has not, and where no layer is left.
    """
    group = plan["group_size"]
    if group not in MLX_GROUPS:
        raise InputError(f"plan `{plan['budget']}`: group_size {group}; MLX packs groups of {MLX_GROUPS}")
    configs = {}
    for layer, bits in plan["layers"].items():
        if bits not in MLX_BITS:
            raise InputError(f"plan `{plan['budget']}`: layer `{layer}` has {bits} bits; MLX packs {MLX_BITS}")
        module = transformer.get_submodule(layer)
        if all(row % group == 0 for row in row_lengths(layer, module.in_features, module.out_features)):
            configs[layer] = MlxConfig(bits, group)
    if not configs:
        raise InputError(f"plan `{plan['budget']}`: group_size {group} divides the rows of none of its layers")
    return configs
