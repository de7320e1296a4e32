"""Generators loaded from registry entries, and the settings that their pipelines fill in."""

import difflib
import inspect
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ditscope.core.errors import InputError
from ditscope.models.folders import INDEX, config_at_hand, resolve_source
from ditscope.models.registry import (
    ANY,
    check_backend,
    check_frames,
    check_loras,
    check_source,
    facts_of,
    family_of,
    has_weights,
    on_mlx,
)
from ditscope.models.settings import Model

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

OWN_SETTINGS = (  # what a pipeline takes and settings of ditscope, or its way of sampling, give
    "prompt", "negative_prompt", "generator", "latents", "height", "width", "num_frames", "num_inference_steps",
    "guidance_scale", "max_sequence_length", "output_type", "return_dict", "num_images_per_prompt",
    "num_videos_per_prompt", "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "self", "kwargs",
)  # fmt: skip


@dataclass(frozen=True)
class Generator:
    """A loaded text-to-image or text-to-video model."""

    name: str
    entry: Model
    family: ModuleType
    pipe: Any
    device: "torch.device"
    encoded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # texts, by what was asked for

    @property
    def computes_on(self) -> str:
        """What its transformer computes on: the device's type, or `mlx`."""
        return "mlx" if self.entry.backend == "mlx" else self.device.type


def default_device() -> str:
    """The accelerator that torch sees, else the CPU; raises InputError where it would leave a GPU of its own idle."""
    from ditscope.models.hardware import idle_gpus

    device = device_at_hand()
    if device == "cpu" and (reason := idle_gpus(os.environ)):
        raise InputError(reason)
    return device


def device_at_hand() -> str:
    """The accelerator that torch sees, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def load_generator(name: str, entry: Model, device: str | None = None) -> Generator:
    """Load a generator of the registry onto one device, in evaluation mode."""
    family = family_of(name, entry)
    check_frames(name, entry)
    check_backend(name, entry)
    check_source(name, entry)
    check_loras(name, entry)
    if not has_weights(entry):
        return dummy_generator(name, entry)
    folder = resolve_source(name, entry)
    if entry.guidance > 0 and not settled(entry).guidance:
        log.warning("%s: reads no guidance; %g is left out, and recorded as 0", name, entry.guidance)
    entry = settled(entry)
    target = available(device or default_device())
    options: dict[str, Any] = {"transformer": None} if entry.backend == "mlx" else {}
    if target.index is None:  # files go straight to the device, and not through host memory
        options["device_map"] = target.type
    pipe = load_pipeline(name, entry, folder, **options)
    pipe.to(target)
    if entry.backend == "mlx":
        pipe.transformer = on_mlx("load").load_transformer(folder, name, entry, target)
    pipe.set_progress_bar_config(disable=True)
    loaded = Generator(name, entry, family, pipe, target)
    log.info("loaded %s (%s, %s) on %s", name, entry.family, entry.dtype, loaded.computes_on)
    return loaded


def dummy_generator(name: str, entry: Model) -> Generator:
    """A generator whose family has a pipeline of its own (`Pipeline`) and nothing to read."""
    import torch

    family = family_of(name, entry)
    return Generator(name, settled(entry), family, family.Pipeline(), torch.device("cpu"))


def available(device: str) -> "torch.device":
    """The device of a name as torch knows it, as `cuda:1`. Raises InputError where this machine has none."""
    import torch

    try:
        torch_device = torch.device(device)
        torch.empty(1, device=torch_device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise InputError(f"device `{device}`: not on this machine ({reason}); here: {default_device()}") from None
    return torch_device


def load_pipeline(name: str, entry: Model, folder: Path, **parts: Any) -> Any:
    """The diffusers pipeline of a folder; `parts` are components that are loaded already, or None to leave them out."""
    from ditscope.models.families.common import DTYPES
    from ditscope.models.lora import fuse_loras
    from ditscope.models.pipelines import refusal

    family, pipeline = family_of(name, entry), pipeline_class(entry)
    if pipeline is None:
        raise InputError(
            f"models.{name}.source: its pipeline {pipeline_name(entry)} is none of the installed diffusers"
        )
    if facts_of(entry.family).pipeline == ANY and (reason := refusal(pipeline)):
        raise InputError(f"models.{name}.family: `{entry.family}` does not drive {pipeline.__name__}: {reason}")
    check_call(name, entry, pipeline)
    dtype: Any = DTYPES[entry.dtype]
    if hasattr(family, "VAE_DTYPE"):
        dtype = {"default": dtype, "vae": family.VAE_DTYPE}
    if not entry.use_t5 and entry.family == "sd3":
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    pipe = pipeline.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **parts)
    if entry.loras:
        fuse_loras(name, entry, pipe)
    if not hasattr(pipe, "transformer"):
        pipe.transformer = pipe.unet  # the network that is quantized and watched, under the name of every other family
    return pipe


def pipeline_name(entry: Model) -> str:
    """The name of the class of diffusers that samples a model; empty where its folder is not here to tell."""
    named = facts_of(entry.family).pipeline
    return str(config_at_hand(entry, INDEX).get("_class_name", "")) if named == ANY else named


def pipeline_class(entry: Model) -> Any:
    """The class of diffusers that samples a model; None where that has none of its name, or it is not known yet."""
    import diffusers

    return getattr(diffusers, pipeline_name(entry) or "none", None)


def defaults_of(entry: Model) -> dict[str, Any]:
    """What the pipeline of a model of any family takes, each with its default; empty where it is not known yet."""
    pipeline = pipeline_class(entry)
    parameters = inspect.signature(pipeline.__call__).parameters if pipeline else {}
    return {name: parameter.default for name, parameter in parameters.items()}


def check_call(name: str, entry: Model, pipeline: type) -> None:
    """Refuse arguments of `call` that the pipeline does not take, or that settings of their own give."""
    known = set(inspect.signature(pipeline.__call__).parameters) - set(OWN_SETTINGS)
    for argument in entry.call:
        if argument in OWN_SETTINGS:
            raise InputError(f"models.{name}.call: `{argument}` is no option of `call`; other settings give it")
        if argument not in known:
            near = ", ".join(difflib.get_close_matches(argument, known, 3, 0.5) or sorted(known))
            raise InputError(f"models.{name}.call: {pipeline.__name__} takes no `{argument}`; it takes {near}")


def settled(entry: Model) -> Model:
    """The entry with the guidance that its pictures are made with: the pipeline's default where none is given.

    0 where the model reads none, so that a setting without effect is neither hashed nor recorded.
    """
    guidance = entry.guidance if entry.guidance >= 0 else facts_of(entry.family).guidance
    if guidance < 0:
        guidance = float(defaults_of(entry).get("guidance_scale") or 0)
    named = facts_of(entry.family).pipeline != ANY  # of others, embedded guidance need not be the only one
    read = config_at_hand(entry).get("guidance_embeds", True) or not named
    return replace(entry, guidance=guidance if read else 0.0)


def reads_negative(entry: Model) -> bool:
    """Whether a model reads a negative prompt: under classifier-free guidance, which FLUX has by `true_cfg_scale`."""
    if facts_of(entry.family).pipeline == ANY:
        defaults = defaults_of(entry)
        scale = defaults.get("true_cfg_scale", 1.0) or 1.0
        scale = entry.call.get("true_cfg_scale", scale) if "true_cfg_scale" in defaults else settled(entry).guidance
        return "negative_prompt" in defaults and scale > 1
    return bool((entry.call.get("true_cfg_scale", 1) if entry.family == "flux" else entry.guidance) > 1)


def text_length(model: Generator) -> int:
    """Tokens that the model's T5 reads of a prompt: the entry's, else the pipeline's default as far as it was trained.

    Its tokenizer says how far (`model_max_length`); without a T5 it is the length of the zeros in its place.
    """
    parameters = inspect.signature(type(model.pipe).__call__).parameters
    if "max_sequence_length" not in parameters:
        return 0
    tokenizer = getattr(model.pipe, model.family.T5, None)
    limit = parameters["max_sequence_length"].default or 0
    return model.entry.max_sequence_length or (min(limit, tokenizer.model_max_length) if tokenizer else limit)
