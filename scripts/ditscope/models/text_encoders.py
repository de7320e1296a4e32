"""The text encoders of a pipeline under a scheme that quantizes them too (`text_encoders: true`).

Every linear layer of theirs is quantized as those of the transformer, less the head of a language model, which nothing
reads, and layers that the group size or the kernel's tile does not divide. `skip_layers` is of the transformer alone.
"""

from collections import OrderedDict
from typing import Any

from torch import nn
from torchao.quantization import FqnToConfig, quantize_

from ditscope.models.emulate.layer import Recipe
from ditscope.models.quantize import kind_of, left_why, stored_bytes, weight_bytes
from ditscope.models.schemes.kind import LayerConfig
from ditscope.models.settings import Scheme


def text_encoders(pipe: Any) -> dict[str, nn.Module]:
    """The text encoders of a pipeline, by the names of its components."""
    parts = {name: getattr(pipe, name, None) for name in getattr(pipe, "components", {}) if "text_encoder" in name}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def encoder_configs(encoder: nn.Module, scheme: Scheme) -> dict[str, LayerConfig]:
    """The config of each linear layer of a text encoder that a scheme quantizes; none under one that leaves them."""
    config = kind_of(scheme).config(scheme) if scheme.text_encoders else None
    if config is None:
        return {}
    head = encoder.get_output_embeddings() if hasattr(encoder, "get_output_embeddings") else None
    linear = {name: m for name, m in encoder.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return {name: config for name, module in linear.items() if not left_why(encoder, name, module, scheme)}


def quantize_encoders(pipe: Any, scheme: Scheme) -> None:
    """Quantize the text encoders of a pipeline in place, where the scheme says so."""
    if scheme.text_encoders and kind_of(scheme).sparse:
        raise NotImplementedError(f"{scheme.kind} prunes the transformer alone; set `text_encoders: false`")
    config = kind_of(scheme).config(scheme)
    if scheme.text_encoders and isinstance(config, Recipe) and config.needs:
        raise NotImplementedError(f"{scheme.kind} is calibrated for the transformer alone; set `text_encoders: false`")
    for encoder in text_encoders(pipe).values():
        if configs := encoder_configs(encoder, scheme):
            quantize_(encoder, FqnToConfig(OrderedDict(configs)), filter_fn=None)


def encoder_bytes(pipe: Any) -> int:
    """Bytes that the text encoders' parameters and buffers take in memory."""
    return sum(map(stored_bytes, text_encoders(pipe).values()))


def nominal_encoder_bytes(pipe: Any, scheme: Scheme) -> int:
    """Bytes that the text encoders stand for under a scheme, computed before it is applied."""
    change = 0
    for encoder in text_encoders(pipe).values():
        for name, config in encoder_configs(encoder, scheme).items():
            weight = encoder.get_submodule(name).weight
            change += weight_bytes(weight, config) - weight.nbytes
    return encoder_bytes(pipe) + change
