"""Quantization schemes of a generator's transformer: a registry that says what becomes of each linear layer.

A scheme is data (`settings.Scheme`); its kind turns it into one config of torchao or MLX, or a recipe, per layer, and
all else (applying it, its nominal size, whether it is only simulated) is read off those: a plan is no special case.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.prototype.mx_formats import (
    MXDynamicActivationMXWeightConfig,
    NVFP4DynamicActivationNVFP4WeightConfig,
    NVFP4WeightOnlyConfig,
)
from torchao.quantization import (
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerGroup,
    PerTensor,
    quantize_,
)
from torchao.quantization.quantize_.common.kernel_preference import KernelPreference
from torchao.quantization.quantize_.workflows import Float8PackingFormat
from torchao.sparsity.sparse_api import SemiSparseWeightConfig, apply_fake_sparsity

from ditscope.core.errors import InputError
from ditscope.core.plugins import load_plugin
from ditscope.models.bit_plan import format_configs, formats_of, load_plan, to_fqn_config, to_mlx
from ditscope.models.by_step import ByStep, make_stepped
from ditscope.models.emulate.apply import calibrated
from ditscope.models.emulate.formats import FORMATS, Format, stored_bits
from ditscope.models.emulate.inputs import Measure
from ditscope.models.emulate.layer import Recipe
from ditscope.models.families.sd3 import FusedJointAttention
from ditscope.models.mlx.names import MlxConfig, row_lengths
from ditscope.models.packed import SCALE_BITS, intx_bytes, mlx_bytes
from ditscope.models.registry import on_mlx
from ditscope.models.schemes.kind import Kind, LayerConfig
from ditscope.models.settings import SCHEMES, Scheme, backends_of
from ditscope.models.structure import KINDS as LAYER_KINDS
from ditscope.models.structure import layer_kinds

OF_KIND = "kind:"  # a pattern of skip_layers that names a kind of layers
INTX = (IntxWeightOnlyConfig, Int8DynamicActivationIntxWeightConfig)


TILE = "with sides that the kernel's tile does not divide"
GROUP = "with rows that group_size does not divide"
NOT_PLANNED = "not in the plan, or with rows that its group_size does not divide"
INDIVISIBLE = (TILE, GROUP, NOT_PLANNED)  # why a scheme leaves a layer that its filters do not name


def microscaled(config: LayerConfig) -> Format | None:
    """The format of weights under a config of torchao that shares scales by a power of two or a float8; else None."""
    if isinstance(config, NVFP4WeightOnlyConfig | NVFP4DynamicActivationNVFP4WeightConfig):
        return FORMATS["nvfp4"]
    if isinstance(config, MXDynamicActivationMXWeightConfig):
        return FORMATS["mxfp8" if config.weight_dtype == torch.float8_e4m3fn else "mxfp4"]
    return None


def kind_of(scheme: Scheme) -> Kind:
    """What a scheme's kind does: `KIND` of its module."""
    return load_plugin(scheme.kind, SCHEMES, "schemes", "a kind of scheme").KIND


def unsupported(scheme: Scheme, device: str, dtype: str = "bfloat16") -> str:
    """Why a scheme cannot run on `device` ("cpu", "cuda", "mps", "mlx") from weights of `dtype`; empty where it can."""
    kind = kind_of(scheme)
    if kind.never:
        return kind.never
    backend = "mlx" if device == "mlx" else "torch"
    if backend not in (able := backends_of(scheme.kind)):
        return f"{scheme.kind} needs a model with `backend: {able[0]}`; this one's is `{backend}`"
    if backend == "mlx":
        torchs = ("fuse_qkv", "text_encoders", "compile_vae", "cache")
        option = next((option for option in torchs if getattr(scheme, option)), "")
        return f"{option} is torch's; MLX runs the layers as they are" if option else ""
    if kind.capability:
        need = f"{scheme.kind} needs CUDA compute capability {kind.capability[0]}.{kind.capability[1]}"
        if not device.startswith("cuda"):
            return f"{need}; this device is `{device}`"
        if (capability := torch.cuda.get_device_capability(device)) < kind.capability:
            return f"{need}; this GPU has {capability[0]}.{capability[1]}"
    if device.startswith("mps") and ("fp8" in scheme.kind or "fp4" in scheme.kind):
        return f"{scheme.kind} needs float8, which MPS has not"
    if kind.operator and not has_kernel(kind.operator):
        cuda = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        return f"{scheme.kind} needs torchao's compiled kernels, which did not load: {cuda}, they may be for another"
    if kind.dtypes and dtype not in kind.dtypes:
        return f"{scheme.kind} quantizes {' or '.join(kind.dtypes)} weights; the model is loaded as {dtype}"
    return ""


def has_kernel(operator: str) -> bool:
    """Whether an operator has a CUDA kernel: of a library that cannot be loaded torchao only warns."""
    known: bool = torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")
    return known


def unsupported_plan(plan: Path, device: str, dtype: str) -> str:
    """Why a format of a plan cannot run on `device` from weights of `dtype`; empty where all can, and for bit plans."""
    loaded = load_plan(plan)
    used = {n for c in loaded.get("assignment", {}).values() for n in (c.values() if isinstance(c, dict) else [c])}
    reasons = {name: unsupported(s, device, dtype) for name, s in formats_of(loaded).items() if name in used}
    return next((f"format `{name}` of {plan}: {reason}" for name, reason in reasons.items() if reason), "")


def layer_configs(transformer: nn.Module, scheme: Scheme, plan: Path | None = None) -> dict[str, LayerConfig]:
    """Name the config of each linear layer that the scheme quantizes, by fully qualified name, in module order.

    Empty for the base only: raises InputError where the scheme's settings leave nothing to quantize, and
    NotImplementedError where its kernel's tile divides no layer of this model.
    """
    configs, left = coverage(transformer, scheme, plan)
    if configs or scheme.kind == "base" or kind_of(scheme).never:
        return configs
    counts = Counter(left.values())
    why = f"{', '.join(f'{count} {reason}' for reason, count in counts.items())} (as `{next(iter(left), '')}`)"
    message = f"`{scheme.kind}` quantizes none of the {len(left)} linear layers: {why}"
    if counts.keys() == {TILE}:
        raise NotImplementedError(message)
    raise InputError(f"schemes: {message}; change these settings, or leave the scheme out for this model")


def coverage(
    transformer: nn.Module, scheme: Scheme, plan: Path | None = None
) -> tuple[dict[str, LayerConfig], dict[str, str]]:
    """Split the linear layers by what a scheme does: the config of each that it quantizes, why it leaves the others.

    Layers that a group size (or a kernel's tile) does not divide stay in full precision; a torch plan takes the whole
    row as one group there. So do layers that the scheme skips by name or size. Raises InputError for a pattern of
    `skip_layers` that no linear layer matches.
    """
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    named = skipped(transformer, linear, scheme)
    check_plan(scheme, plan)
    if plan:
        loaded = load_plan(plan, transformer)
        if runs_on_mlx(transformer):
            configs: dict[str, LayerConfig] = {**to_mlx(loaded, transformer)}
        else:
            over_formats = "formats" in loaded
            configs = format_configs(loaded) if over_formats else {**to_fqn_config(loaded, transformer).fqn_to_config}
    else:
        config = kind_of(scheme).config(scheme)
        configs = {} if config is None else dict.fromkeys(linear, config)
    left = {
        name: reason
        for name, module in linear.items()
        if (reason := "named by skip_layers" if name in named else left_why(transformer, name, module, scheme))
    }
    if scheme.kind == "plan":
        left |= {name: NOT_PLANNED for name in linear if name not in configs and name not in left}
    return {name: config for name, config in configs.items() if name not in left}, left


def check_plan(scheme: Scheme, plan: Path | None) -> None:
    """Refuse a scheme of kind `plan` without a plan's file, and such a file with a scheme that would not read it."""
    if scheme.kind == "plan" and not plan:
        raise InputError(f"scheme `plan` ({scheme.plan}): give the plan's file; the plan stage makes it")
    if plan and scheme.kind != "plan":
        raise InputError(f"{plan}: a scheme of kind `{scheme.kind}` reads no plan; name a scheme of kind `plan`")


def left_why(transformer: nn.Module, name: str, module: nn.Linear, scheme: Scheme) -> str:
    """Why a scheme leaves a layer in full precision, as a reason that many layers share; empty where it does not."""
    kind = kind_of(scheme)
    config = kind.config(scheme)
    if module.weight.numel() < scheme.min_weights:
        return f"below min_weights {scheme.min_weights}"
    groups = divisors(config) if config else ()
    if any(row % size for size in groups for row in rows(transformer, name, module)):
        return GROUP
    return TILE if module.in_features % kind.multiple or module.out_features % kind.multiple else ""


def divisors(config: LayerConfig) -> tuple[int, ...]:
    """Sizes of groups that a layer's rows must be divided by under a config."""
    if isinstance(config, Recipe):
        return config.divides
    group = group_size(config)
    return (group,) if group else ()


def skipped(transformer: nn.Module, linear: Collection[str], scheme: Scheme) -> set[str]:
    """The linear layers that `skip_layers` names: by patterns of names, or as `kind:mlp` by what they do.

    Raises InputError for a pattern that matches none of them.
    """
    kinds = layer_kinds(transformer) if any(pattern.startswith(OF_KIND) for pattern in scheme.skip_layers) else {}
    found: set[str] = set()
    for pattern in scheme.skip_layers:
        kind = pattern.removeprefix(OF_KIND)
        if kind != pattern:
            matching = {name for name in linear if kinds.get(name) == kind}
            there = [OF_KIND + known for known in LAYER_KINDS if known in {kinds.get(name) for name in linear}]
        else:
            matching = {name for name in linear if fnmatchcase(name, pattern)}
            there = [*linear][:: max(1, len(linear) // 3)][:3]
        if not matching:
            raise InputError(
                f"schemes: skip_layers: `{pattern}` matches none of the {len(linear)} linear layers, which are named "
                f"as {', '.join(f'`{name}`' for name in there)}"
            )
        found |= matching
    return found


def runs_on_mlx(transformer: nn.Module) -> bool:
    """Whether a transformer is `ditscope.models.mlx.transformer.OnMlx`: names and shapes in torch, weights in MLX."""
    return hasattr(transformer, "mmdit")


def rows(transformer: nn.Module, name: str, layer: nn.Linear) -> tuple[int, ...]:
    """Lengths of a layer's rows, of each part where MLX splits it."""
    sides = layer.in_features, layer.out_features
    return row_lengths(name, *sides) if runs_on_mlx(transformer) else sides[:1]


def label(scheme: Scheme) -> str:
    """What a scheme does in a few words: its kind, and what else it changes. Only the plain base is called `base`."""
    options = [option for option in ("fuse_qkv", "text_encoders", "compile_vae") if getattr(scheme, option)]
    return "+".join([scheme.kind, *options, *([scheme.cache] if scheme.cache else [])])


def fuse_qkv(transformer: nn.Module) -> None:
    """Join query, key and value projections in place, by diffusers; the separate ones are dropped, so no byte more.

    A transformer that is fused already stays as it is.
    """
    if any(hasattr(module, "to_qkv") for module in transformer.modules()):
        return
    if not hasattr(transformer, "fuse_qkv_projections"):
        raise NotImplementedError(f"diffusers has no fuse_qkv_projections of {type(transformer).__name__}")
    with torch.no_grad():
        transformer.fuse_qkv_projections()
    if isinstance(transformer, SD3Transformer2DModel):
        transformer.set_attn_processor(FusedJointAttention())
    for module in transformer.modules():
        for fused, parts in (("to_qkv", "to_q to_k to_v"), ("to_added_qkv", "add_q_proj add_k_proj add_v_proj")):
            if hasattr(module, fused):
                for part in parts.split():
                    delattr(module, part)


def apply_scheme(
    transformer: nn.Module, scheme: Scheme, plan: Path | None = None, measure: Measure | None = None
) -> None:
    """Quantize a transformer's linear layers in place, on the device where it is, after fusing what is to be fused.

    `measure` runs the calibration set of a scheme that needs one.
    """
    if scheme.fuse_qkv:
        fuse_qkv(transformer)
    configs = layer_configs(transformer, scheme, plan)
    if not configs:
        return
    if runs_on_mlx(transformer):
        on_mlx("quantize").quantize(transformer, configs)
        return
    if kind_of(scheme).sparse:  # keep the two largest of every four weights
        apply_fake_sparsity(transformer, filter_fn=lambda module, name: name in configs)
    if measure and (solved := {n: c for n, c in configs.items() if isinstance(c, Recipe) and c.needs}):
        calibrated(transformer, solved, measure)
        configs = {name: config for name, config in configs.items() if name not in solved}
    if stepped := {name: config for name, config in configs.items() if isinstance(config, ByStep)}:
        configs = {name: c for name, c in configs.items() if name not in stepped} | make_stepped(transformer, stepped)
    quantize_(transformer, FqnToConfig(OrderedDict(configs)), filter_fn=None)
    if kind_of(scheme).sparse:
        for name in configs:
            take_rows(transformer.get_submodule(name))


def take_rows(layer: nn.Module) -> None:
    """Have a linear layer see its input as contiguous rows (tokens, channels), whatever its shape.

    torch's 2:4 kernel takes a view of its input, which a transposed one (SD3 at batch >= 2) does not have; torchao's
    fp8 one squeezes the scales of a batch of tokens along the wrong axis.
    """
    layer.forward = partial(by_rows, layer.forward)


def by_rows(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`forward` of the rows of x (..., channels), in the shape of x."""
    return forward(x.reshape(-1, x.shape[-1]).contiguous()).unflatten(0, x.shape[:-1])


def nominal_bytes(transformer: nn.Module, scheme: Scheme, plan: Path | None = None) -> int:
    """Bytes that a transformer stands for under a scheme: bits of the weights, 16-bit scales and zero points.

    Computed from the transformer before the scheme is applied; what is not quantized counts as it is stored. This
    is the size of a packed file, whatever layout torchao keeps in memory.
    """
    weights = quantized_weights(transformer, scheme, plan)
    return stored_bytes(transformer) + sum(weight_bytes(w, config) - w.nbytes for w, config in weights)


def mean_bits(transformer: nn.Module, scheme: Scheme, plan: Path | None = None) -> float | None:
    """Nominal bits of a quantized weight, scales and zero points included; None where nothing is quantized."""
    weights = quantized_weights(transformer, scheme, plan)
    parameters = sum(weight.numel() for weight, _ in weights)
    return 8 * sum(weight_bytes(w, config) for w, config in weights) / parameters if parameters else None


def quantized_weights(transformer: nn.Module, scheme: Scheme, plan: Path | None) -> list[tuple[Tensor, LayerConfig]]:
    """The weights that a scheme quantizes, each with its config."""
    configs, _ = coverage(transformer, scheme, plan)
    return [(transformer.get_submodule(name).weight, config) for name, config in configs.items()]


def weight_bytes(weight: Tensor, config: LayerConfig | None) -> int:
    """Nominal bytes of one weight (out, in) under a config, or of all its variants; None is full precision."""
    if config is None:
        return weight.nbytes
    if isinstance(config, ByStep):
        return sum(weight_bytes(weight, variant) for variant in config.distinct().values())
    if isinstance(config, MlxConfig):
        return mlx_bytes(weight.numel(), config.bits, config.group_size, weight.itemsize, config.mode)
    if isinstance(config, Recipe):
        return math.ceil(config.bits_of(weight.shape[0], weight[0].numel()) / 8)
    if kind := microscaled(config):
        return math.ceil(stored_bits(kind, (weight.shape[0], weight[0].numel())) / 8)
    if isinstance(config, SemiSparseWeightConfig):  # two of four values and a 2-bit position of each
        return weight.nbytes // 2 + weight.numel() // 8
    if getattr(config, "packing_format", None) == Float8PackingFormat.SPARSE_2D_DATA_2D_METADATA:
        return weight.numel() // 2 + weight.numel() // 8 + weight.shape[0] * SCALE_BITS // 8
    bits = weight_bits(config)
    shared = weight.numel() if per_tensor(config) else group_size(config) or weight[0].numel()
    if asymmetric(config):
        return intx_bytes(weight.numel(), bits, shared)
    return math.ceil((weight.numel() * bits + weight.numel() // shared * SCALE_BITS) / 8)


def weight_bits(config: LayerConfig) -> int:
    """Bits of one quantized weight under a config."""
    if isinstance(config, MlxConfig | Recipe):
        return config.bits
    if kind := microscaled(config):
        return kind.bits
    if isinstance(config, INTX):
        return int(str(config.weight_dtype).removeprefix("torch.int"))
    return 4 if isinstance(config, Int4WeightOnlyConfig) else 8


def group_size(config: LayerConfig) -> int:
    """Inputs that share a scale under a config; 0 where that is a whole row or tensor."""
    if isinstance(config, Int4WeightOnlyConfig | MlxConfig):
        return config.group_size
    if isinstance(config, Recipe):
        return config.weights.group
    if kind := microscaled(config):
        return kind.group
    granularity = getattr(config, "weight_granularity", None) or getattr(config, "granularity", None)
    return granularity.group_size if isinstance(granularity, PerGroup) else 0


def per_tensor(config: AOBaseConfig) -> bool:
    """Whether one scale serves the whole weight."""
    granularity = getattr(config, "granularity", None)  # fp8 dynamic: [of the activation, of the weight]
    return isinstance(granularity[1] if isinstance(granularity, list) else granularity, PerTensor)


def asymmetric(config: AOBaseConfig) -> bool:
    """Whether the weights have zero points beside their scales."""
    if isinstance(config, Int4WeightOnlyConfig):
        return True
    mapping = getattr(config, "weight_mapping_type", None) or getattr(config, "mapping_type", None)
    return mapping == MappingType.ASYMMETRIC


def is_simulated(transformer: nn.Module, scheme: Scheme, plan: Path | None = None) -> bool:
    """Whether some layers are stored or computed in more bits than the scheme says.

    torchao keeps integers of 1 to 7 bits in bytes, and multiplies MX formats in bfloat16 where there is no kernel;
    emulated kinds keep and multiply the model's own type.
    """
    configs, _ = coverage(transformer, scheme, plan)
    variants = [v for c in configs.values() for v in (c.distinct().values() if isinstance(c, ByStep) else [c])]
    return any(config is not None and simulated(config) for config in variants)


def simulated(config: LayerConfig) -> bool:
    """Whether a layer under a config is stored or computed in more bits than the config says."""
    if isinstance(config, MXDynamicActivationMXWeightConfig):
        return config.kernel_preference == KernelPreference.EMULATED
    return isinstance(config, Recipe) or (isinstance(config, INTX) and weight_bits(config) < 8)


def stored_bytes(module: nn.Module) -> int:
    """Bytes that the weights of a module really take: inside torchao's tensor subclasses, or in MLX."""
    if runs_on_mlx(module):
        return int(on_mlx("quantize").stored_bytes(module))
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor_bytes(t) for t in tensors)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, or of all inner tensors of a tensor subclass."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.nbytes
