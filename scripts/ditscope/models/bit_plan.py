"""Plans as files: read, and exported to torchao and MLX.

A bit plan (schema version 1) has `layers`, name -> bits. A plan over formats (version 2) has `formats`, the scheme that
each name stands for, `steps`, how the schedule is divided, and `assignment`, layer -> format, or part -> format.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditscope.core.errors import InputError, check_version, read_json
from ditscope.core.plugins import load_plugin
from ditscope.core.settings import decode
from ditscope.models.mlx.names import MLX_BITS, MLX_GROUPS, MlxConfig, row_lengths
from ditscope.models.packed import effective_group_size
from ditscope.models.schedule_parts import DIVISIONS
from ditscope.models.settings import SCHEMES, Scheme

if TYPE_CHECKING:
    from torch import nn
    from torchao.quantization import FqnToConfig

SCHEMA_VERSION = "1"
FORMATS_VERSION = "2"  # of a plan over formats


def load_plan(path: Path | str, transformer: "nn.Module | None" = None) -> dict[str, Any]:
    """Read a plan; with `transformer`, check that every layer of the plan is one of its linear layers."""
    what = "not a bit plan (JSON with `layers`: name -> bits); run the plan stage again"
    try:
        loaded = read_json(path, what)
    except FileNotFoundError:
        raise InputError(f"{path}: no such plan; run the plan stage first") from None
    layers = loaded.get("layers")
    over_formats = "formats" in loaded
    numbers = (int, float) if over_formats else (int,)
    if not isinstance(layers, dict) or not all(type(bits) in numbers for bits in layers.values()):
        raise InputError(f"{path}: {what}")
    version = FORMATS_VERSION if over_formats else SCHEMA_VERSION
    check_version(path, loaded.get("schema_version"), version, "run the plan stage again")
    if over_formats:
        check_formats(path, loaded)
    for layer, bits in layers.items():
        if not over_formats and not 1 <= bits <= 8:
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


def check_formats(path: Path | str, plan: dict[str, Any]) -> None:
    """Refuse a plan over formats that assigns what it does not name, or parts that its division has not."""
    assignment, fix = plan.get("assignment"), "run the plan stage again"
    if not isinstance(assignment, dict) or assignment.keys() != plan["layers"].keys():
        raise InputError(f"{path}: `assignment` does not name the layers of `layers`; {fix}")
    if plan.get("steps") not in DIVISIONS:
        raise InputError(f"{path}: `steps` is {plan.get('steps')!r}, not one of {', '.join(DIVISIONS)}; {fix}")
    parts = DIVISIONS[plan["steps"]].keys()
    for layer, chosen in assignment.items():
        if isinstance(chosen, dict) and chosen.keys() != parts:
            raise InputError(f"{path}: layer `{layer}` has not a format for each of {', '.join(parts)}; {fix}")
        for name in chosen.values() if isinstance(chosen, dict) else [chosen]:
            if name not in plan["formats"]:
                raise InputError(f"{path}: layer `{layer}` has the format `{name}`, which `formats` lacks; {fix}")
    for name, entry in plan["formats"].items():
        decode(Scheme, entry, f"{path}: formats.{name}")


def formats_of(plan: dict[str, Any]) -> dict[str, Scheme]:
    """The schemes that a plan's formats stand for; empty for a bit plan."""
    return {name: decode(Scheme, entry) for name, entry in plan.get("formats", {}).items()}


def format_configs(plan: dict[str, Any]) -> dict[str, Any]:
    """The config of each layer that a plan over formats quantizes: one of torchao's, or a `ByStep` of several."""
    from ditscope.models.by_step import ByStep

    own = {
        name: load_plugin(scheme.kind, SCHEMES, "schemes", "a kind of scheme").KIND.config(scheme)
        for name, scheme in formats_of(plan).items()
    }
    configs = {
        layer: ByStep(plan["steps"], {part: own[name] for part, name in chosen.items()})
        if isinstance(chosen, dict)
        else own[chosen]
        for layer, chosen in plan["assignment"].items()
    }
    return {layer: config for layer, config in configs.items() if config is not None}


def to_fqn_config(plan: dict[str, Any], transformer: "nn.Module") -> "FqnToConfig":
    """Export a plan to torchao: for each layer weight-only integers of its bits, asymmetric, by group or by row.

    Apply it with `quantize_(transformer, config, filter_fn=None)`. The weights are then those that the sensitivity
    stage measured with quantizer `group`; torchao has no palettes, so a `palettize` plan only keeps its bits.
    """
    import torch
    from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup

    from ditscope.models.by_step import ByStep
    from ditscope.models.quantizers import quantizable

    if "formats" in plan:
        own = format_configs(plan)
        if any(isinstance(config, ByStep) for config in own.values()):
            raise InputError(f"plan `{plan['budget']}`: it switches weights between steps, which torchao has not")
        return FqnToConfig(own)
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
    if "formats" in plan:
        raise InputError(f"plan `{plan['budget']}`: plans over formats are torch's; give a budget without `formats`")
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
