"""LoRA files (Hu et al. 2021) fused into a model's weights as it is loaded: W + scale * alpha / rank * B A.

Any format that the pipeline's own loader of diffusers translates (diffusers, PEFT, kohya, ComfyUI); no PEFT is needed.
"""

import json
import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor, nn

from ditscope.core.errors import InputError, line
from ditscope.models.folders import check_safetensors
from ditscope.models.settings import Model

log = logging.getLogger(__name__)

FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
METADATA = "lora_adapter_metadata"  # PEFT's settings, as diffusers saves them
NOT_PLAIN = ("dora_scale", "lora_magnitude_vector", "hada_w", "lokr_w")  # DoRA, LoHa and LoKr: no product of two


@dataclass(frozen=True)
class Change:
    """What a LoRA adds to one layer."""

    a: Tensor  # (rank, inputs)
    b: Tensor  # (outputs, rank)
    weight: float  # alpha / rank

    def of_weight(self) -> Tensor:
        """The change of the layer's weight (outputs, inputs), in float32."""
        return self.weight * (self.b.float() @ self.a.float())


def fuse_loras(name: str, entry: Model, pipe: Any) -> None:
    """Fuse the LoRA files of an entry into a pipeline. Raises InputError for a file that does not fit it whole."""
    for file, scale in entry.loras.items():
        count = fuse(pipe, Path(file).expanduser(), scale)
        log.info("%s: %s is fused into %d layers, scale %g", name, file, count, scale)


@torch.no_grad()
def fuse(pipe: Any, file: Path, scale: float = 1.0) -> int:
    """Add `scale` times the changes of a LoRA file to the weights of a pipeline; how many layers it changed."""
    changes = {layer_of(pipe, path, file): change for path, change in read_lora(type(pipe), file).items()}
    for layer, change in changes.items():
        update = change.of_weight().to(layer.weight.device)
        if update.shape != layer.weight.shape:
            raise InputError(
                f"{file}: its change of a layer is {tuple(update.shape)}, and the weight is "
                f"{tuple(layer.weight.shape)}; it was made for another model"
            )
    for layer, change in changes.items():
        update = change.of_weight().to(layer.weight.device)
        layer.weight.copy_(layer.weight.float() + scale * update)
    return len(changes)


def layer_of(pipe: Any, path: str, file: Path) -> nn.Linear:
    """The linear layer of a pipeline at a path that begins with the component's name."""
    component, _, inner = path.partition(".")
    part = getattr(pipe, component, None)
    if not isinstance(part, nn.Module):
        part, inner = pipe.transformer, path
    try:
        layer = part.get_submodule(inner)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        what = "no such layer" if layer is None else f"a {type(layer).__name__} there, and only linear layers are fused"
        raise InputError(f"{file}: changes `{path}`: {type(pipe).__name__} has {what}")
    return layer


def read_lora(pipeline: Any, file: Path) -> dict[str, Change]:
    """The changes in a LoRA file by layer, as `transformer.blocks.0.attn.to_q`; `pipeline` is the class that reads it.

    Raises InputError for a file of another kind, and for tensors in it that are no LoRA of a linear layer.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such LoRA file; fetch it, or correct `loras`")
    check_safetensors(file)
    state = load_file(file)
    if other := next((key for key in state if any(word in key for word in NOT_PLAIN)), ""):
        raise InputError(f"{file}: `{other}` is of DoRA, LoHa or LoKr; only LoRA is fused")
    alphas: dict[str, Any] = {}
    if hasattr(pipeline, "lora_state_dict"):
        try:
            translated = pipeline.lora_state_dict(dict(state), **returns_alphas(pipeline))
        except (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{file}: {pipeline.__name__} does not know its format ({line(error)})") from None
        state, alphas = translated if isinstance(translated, tuple) else (translated, {})
    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    told = {**(alphas or {}), **{key: value for key, value in state.items() if key.endswith(".alpha")}}
    for key, tensor in state.items():
        if match := FACTOR.fullmatch(key):
            factors[match[1]][match[2]] = tensor
        elif key not in told:
            raise InputError(f"{file}: `{key}` is no factor of a LoRA; only its matrices A and B are fused")
    if not factors:
        raise InputError(f"{file}: holds no LoRA (no `...lora_A.weight`); give another file")
    settings = adapter_settings(file)
    return {path: change_of(path, pair, told, settings, file) for path, pair in factors.items()}


def returns_alphas(pipeline: Any) -> dict[str, bool]:
    """The option by which a pipeline's loader gives alphas apart, where it has one."""
    import inspect

    known = inspect.signature(pipeline.lora_state_dict).parameters
    return {"return_alphas": True} if "return_alphas" in known else {}


def adapter_settings(file: Path) -> dict[str, Any]:
    """PEFT's settings in a file's metadata, as `transformer.lora_alpha`; empty where it has none."""
    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get(METADATA, "{}")
    try:
        settings: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError):
        raise InputError(f"{file}: its metadata `{METADATA}` is not JSON; save it again") from None
    for key in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora"):
        if any(name.rpartition(".")[2] == key and value for name, value in settings.items()):
            raise InputError(f"{file}: made with `{key}`; only LoRA of one rank and alpha is fused")
    return settings


def change_of(
    path: str, pair: dict[str, Tensor], alphas: dict[str, Any], settings: dict[str, Any], file: Path
) -> Change:
    """The change of one layer; alpha is the rank where none is told."""
    if pair.keys() != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].ndim != 2:
        raise InputError(f"{file}: `{path}` has not the two matrices of a LoRA; only linear layers are fused")
    rank = pair["A"].shape[0]
    if pair["B"].shape[1] != rank:
        raise InputError(f"{file}: `{path}` is of rank {rank} in A and {pair['B'].shape[1]} in B; it is damaged")
    alpha = alphas.get(f"{path}.alpha", settings.get(f"{path.partition('.')[0]}.lora_alpha"))
    return Change(pair["A"], pair["B"], 1.0 if alpha is None else float(alpha) / rank)
