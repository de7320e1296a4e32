"""Where a generator's components live: one device, text encoders in host memory, or a GPU for each."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tqdm import tqdm

from ditscope.core.errors import InputError
from ditscope.models.families.common import DTYPES
from ditscope.models.folders import resolve_source
from ditscope.models.loading import Generator, default_device, load_generator, load_pipeline, settled
from ditscope.models.places import COMPONENTS, component_of, place
from ditscope.models.registry import family_of
from ditscope.models.settings import Model

log = logging.getLogger(__name__)


def load_placed(name: str, entry: Model, *, offload: bool = False, multi_gpu: bool = False) -> Generator:
    """Load a generator onto one device, with its text encoders in host memory (offload), or spread over all GPUs."""
    if offload and multi_gpu:
        raise InputError("`offload` and `multi_gpu` exclude each other; choose one")
    if multi_gpu:
        return load_across(name, entry, [torch.device("cuda", i) for i in range(torch.cuda.device_count())])
    if not offload:
        return load_generator(name, entry)
    device = default_device()
    if device == "cpu":
        raise InputError("offload: this machine has no accelerator to offload from; leave the option out")
    model = load_generator(name, entry, "cpu")
    keep_encoders_in_host_memory(model.pipe, torch.device(device))
    return replace(model, device=torch.device(device))


def keep_encoders_in_host_memory(pipe: Any, device: torch.device) -> None:
    """Move a pipeline to a device but for its text encoders, whose layers visit it one by one while they compute.

    So the transformer moves once. diffusers' `enable_model_cpu_offload` would carry it, 24 GB of FLUX, there and back
    for every picture; the encoders, 10 GB, travel one way, and only for a new prompt.
    """
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            if name.startswith("text_encoder"):
                cpu_offload(part, device, offload_buffers=True)
            else:  # with a hook that only says where it computes: the pipeline asks the first component that has one
                add_hook_to_module(part.to(device), AlignDevicesHook(execution_device=device))


def load_across(name: str, entry: Model, devices: Sequence[torch.device]) -> Generator:
    """Load each component of a generator straight to its device among `devices`.

    Hooks move a component's inputs to its device and its outputs back to where the inputs were, so that callers see
    one device: the transformer's.
    """
    places = {component: devices[i] for component, i in place(COMPONENTS, len(devices)).items()}
    folder = resolve_source(name, entry)
    family, entry = family_of(name, entry), settled(entry)
    index = json.loads((folder / "model_index.json").read_text())
    parts = {
        attribute: (component_of(attribute, spec[1]), getattr(import_module(spec[0]), spec[1]))
        for attribute, spec in index.items()
        if isinstance(spec, list) and spec[0] and component_of(attribute, spec[1])
        if entry.use_t5 or spec[1] != "T5EncoderModel"
    }
    loaded = {}
    for attribute, (component, cls) in tqdm(parts.items(), desc=f"loading {name}", unit="component", disable=None):
        loaded[attribute] = cls.from_pretrained(
            folder / attribute,
            dtype=DTYPES[entry.dtype],
            use_safetensors=True,
            device_map={"": places[component]},
        ).eval()
        log.info("%s: %s on %s", name, attribute, places[component])
    vae = loaded["vae"]
    hooked = [(module, places[parts[a][0]]) for a, module in loaded.items() if module is not vae]
    halves = {"encoder": "vae_encoder", "quant_conv": "vae_encoder"}
    halves |= {"decoder": "vae_decoder", "post_quant_conv": "vae_decoder"}
    hooked += [(getattr(vae, half, None), places[component]) for half, component in halves.items()]
    for module, device in hooked:
        if module is not None:
            add_hook_to_module(module.to(device), AlignDevicesHook(execution_device=device, io_same_device=True))
    pipe = load_pipeline(name, entry, folder, **loaded)
    pipe.set_progress_bar_config(disable=True)
    return Generator(name, entry, family, pipe, places["transformer"])
