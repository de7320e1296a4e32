"""`ditscope export`: a plan in the form that another runtime reads."""

import logging
from pathlib import Path
from typing import Annotated

import diffusers
import torch
from torchao.core.config import AOBaseConfig

from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.core.paths import InputFile, OutputFile
from ditscope.core.plugins import load_plugin
from ditscope.models.bit_plan import load_plan
from ditscope.models.exports.format import Export
from ditscope.models.folders import resolve_source, transformer_config
from ditscope.models.quantize import layer_configs
from ditscope.models.settings import Model, Scheme
from ditscope.models.structure import on_meta

log = logging.getLogger(__name__)

# Runtimes, each with the module that writes for it: `VERSION`, and `write` (Export, file) -> how to use the file.
RUNTIMES = {
    "torchao": "ditscope.models.exports.torchao",
    "sdnq": "ditscope.models.exports.sdnq",
    "sdcpp": "ditscope.models.exports.sdcpp",
    "comfyui": "ditscope.models.exports.comfyui",
    "vllm": "ditscope.models.exports.vllm",
    "mlx": "ditscope.models.exports.mlx",
}


def export(
    plan: Annotated[InputFile, "a plan, as the plan stage leaves it"],
    /,
    models: dict[str, Model],
    to: Annotated[str, f"the runtime: {', '.join(RUNTIMES)}, or a module of your own"],
    out: OutputFile,
    model: Annotated[str, "another model of the same layers; empty: the plan's own"] = "",
) -> None:
    """Write a plan for another runtime.

    torchao: a folder that diffusers reloads; sdnq: arguments of an SDNQConfig; sdcpp: --tensor-type-rules of
    stable-diffusion.cpp; comfyui: a checkpoint; vllm: a quantization_config; mlx: a `quantization` of bits per layer.
    Raises InputError for a plan of other layers, formats that the runtime has not, and a file that is there already.
    """
    writer = load_plugin(to, RUNTIMES, "--to", "a runtime")
    if out.exists():
        raise InputError(f"--out: {out} is there already; name another, or remove it first")
    log.info("%s (%s): %s", out, writer.VERSION, writer.write(export_of(plan, models, model), out))


def export_of(plan: Path, models: dict[str, Model], model: str = "") -> Export:
    """What a plan says of the layers of its model, or of another one of the config."""
    loaded = load_plan(plan)
    if any(isinstance(chosen, dict) for chosen in loaded.get("assignment", {}).values()):
        raise InputError(f"{plan}: it switches weights between steps, which no runtime takes; plan with `steps: all`")
    name = model or loaded["model"]
    if name not in models:
        raise InputError(unknown("--model", name, models, "in the config's `models`"))
    config = transformer_config(name, models[name])
    transformer = on_meta(getattr(diffusers, config["_class_name"]), config)
    configs = layer_configs(transformer, Scheme("plan", plan=loaded["budget"]), plan)
    if own := [layer for layer, config in configs.items() if not isinstance(config, AOBaseConfig)]:
        raise InputError(
            f"{plan}: layer `{own[0]}` has weights of {type(configs[own[0]]).__name__}, which ditscope alone applies "
            "(formats that switch between steps, or are emulated); plan without steps, over formats of torchao"
        )
    folder = resolve_source(name, models[name]) / "transformer"
    return Export(str(plan), loaded, transformer, configs, folder, getattr(torch, models[name].dtype))
