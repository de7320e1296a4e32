"""Quantized checkpoints: a transformer's weights as torchao or MLX left them, in one safetensors file."""

import json
import logging
import re
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torchao
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict

from ditscope.calibrate.load import calibration_of_scheme, measure_on
from ditscope.core.errors import InputError, check_version, line
from ditscope.core.paths import InputFile, InputFolder, OutputFile
from ditscope.core.tensor_files import save_tensors
from ditscope.models.by_step import schedule_of
from ditscope.models.emulate.layer import EmulatedLinear, hollow
from ditscope.models.folders import check_safetensors
from ditscope.models.loading import load_generator
from ditscope.models.quantize import apply_scheme, check_plan, fuse_qkv, layer_configs, runs_on_mlx, unsupported
from ditscope.models.registry import on_mlx
from ditscope.models.sampling import transformers_of
from ditscope.models.settings import CALIBRATE, Model, Scheme, calibrated_on

log = logging.getLogger(__name__)

SCHEMA_VERSION = "1"
RECORD = "ditscope"  # the one key of the file's metadata: safetensors writes several in no fixed order


def quantize(
    name: str,
    model: Model,
    scheme: Scheme,
    out: OutputFile,
    plan: InputFile | None = None,
    calibration: InputFolder | None = None,
) -> None:
    """Quantize a model's transformer under a scheme and save it as one safetensors file, on the device at hand.

    `calibration` is the set that the scheme is solved from, where it needs one and names no folder of its own.
    """
    check_plan(scheme, plan)
    scheme = calibrated_on(scheme, name, calibration or CALIBRATE)
    calibrated = calibration_of_scheme(scheme, name, model)
    generator = load_generator(name, model)
    if reason := unsupported(scheme, generator.computes_on, model.dtype):
        raise InputError(f"models.{name}: {reason}")
    if scheme.kind == "base":
        raise InputError("schemes: `base` quantizes nothing; name another scheme")
    if len(transformers_of(generator.pipe)) > 1:
        raise InputError(f"models.{name}: has two transformers, and a checkpoint holds one; benchmark it instead")
    if scheme.text_encoders:
        raise InputError("schemes: `text_encoders`: a checkpoint holds the transformer alone; set it to false")
    try:
        apply_scheme(generator.pipe.transformer, scheme, plan, measure_on(generator, calibrated))
    except NotImplementedError as error:
        raise InputError(f"models.{name}: {error}") from None
    save_checkpoint(generator.pipe.transformer, scheme, out, plan)


def save_checkpoint(transformer: nn.Module, scheme: Scheme, out: Path, plan: Path | None = None) -> None:
    """Write a quantized transformer: torchao's or MLX's tensors, and in the metadata what rebuilds it around them.

    `full_precision` there names the linear layers that the scheme left.
    Raises InputError for layouts that torchao cannot write (2:4 sparse weights).
    """
    if runs_on_mlx(transformer):
        configs = layer_configs(transformer, scheme, plan)
        left = left_layers(transformer, out, configs)
        made = {"schema_version": SCHEMA_VERSION, "scheme": asdict(scheme), "full_precision": left}
        on_mlx("quantize").save_checkpoint(transformer, configs, out, made)
        return
    if schedule_of(transformer):
        raise InputError("schemes: a plan that switches weights between steps cannot be saved as one checkpoint")
    state = {name: tensor.detach() for name, tensor in transformer.state_dict().items()}
    own = {name: state.pop(name) for name in [*state] if "." not in name}  # torchao reads back none of these
    try:
        tensors, metadata = flatten_tensor_state_dict(state)
    except ValueError as error:
        raise InputError(f"schemes: `{scheme.kind}` cannot be saved ({error})") from None
    record = {
        "schema_version": SCHEMA_VERSION,
        "class": type(transformer).__name__,
        "config": {key: value for key, value in transformer.config.items() if not key.startswith("_")},
        "scheme": asdict(scheme),
        "full_precision": left_layers(transformer, out),
        "emulated": emulated_layers(transformer),
        "torchao": torchao.__version__,
        "tensors": metadata,
    }
    save_tensors(tensors | own, out, {RECORD: json.dumps(record, sort_keys=True)})


def emulated_layers(transformer: nn.Module) -> dict[str, dict[str, Any]]:
    """What rebuilds each emulated layer around its tensors, by the layer's name."""
    return {name: m.described() for name, m in transformer.named_modules() if isinstance(m, EmulatedLinear)}


def left_layers(transformer: nn.Module, out: Path, quantized: Collection[str] = ()) -> list[str]:
    """Linear layers that were left in full precision, less `quantized`; says so where there are any."""
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    quantized = {*quantized, *emulated_layers(transformer)}
    left = [name for name, m in linear.items() if type(m.weight.data) is Tensor and name not in quantized]
    if left:
        log.warning("%s: %d of %d layers are in full precision: %s", out, len(left), len(linear), ", ".join(left))
    return left


def load_checkpoint(path: Path, device: str = "cpu") -> nn.Module:
    """The quantized transformer of a file that `save_checkpoint` wrote, in evaluation mode; no weight is made twice.

    Raises InputError for a file that is truncated, not of this kind, or of another schema version.
    """
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint; make it with `ditscope quantize`")
    check_safetensors(path)
    with safe_open(path, "pt", device=device) as file:
        record = record_of(path, file.metadata() or {})
        if record.get("backend") == "mlx":
            return on_mlx("quantize").load_checkpoint(path, record)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    own = {name: tensors.pop(name) for name in [*tensors] if "." not in name}
    state, left = unflatten_tensor_state_dict(tensors, record["tensors"])
    if left:
        raise InputError(f"{path}: tensor `{min(left)}` belongs to no weight; make the checkpoint again")
    with init_empty_weights():
        transformer = getattr(diffusers, record["class"]).from_config(record["config"])
        if record["scheme"]["fuse_qkv"]:
            fuse_qkv(transformer)
        for name, described in record.get("emulated", {}).items():
            transformer.set_submodule(name, hollow(transformer.get_submodule(name), described))
    try:
        transformer.load_state_dict(state | own, assign=True)
    except RuntimeError as error:
        raise InputError(f"{path}: {line(error)[:300]}; make the checkpoint again") from None
    return transformer.requires_grad_(False).eval()


def record_of(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Our record in a checkpoint's metadata."""
    try:
        record = json.loads(metadata[RECORD])
    except (KeyError, ValueError):
        raise InputError(f"{path}: no quantized checkpoint of ditscope; make it with `ditscope quantize`") from None
    check_version(path, record.get("schema_version"), SCHEMA_VERSION, "make the checkpoint again")
    if not re.search(r"Transformer\w*Model$", record["class"]):
        raise InputError(f"{path}: `{record['class']}` is no transformer of diffusers")
    return record
