"""Build DiffusionKit's MMDiT from a diffusers config and weights, and run it at any noise level."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from ditscope.core.errors import InputError, line
from ditscope.models.mlx.names import mmdit_paths

# DiffusionKit brings coremltools, which warns of what is not used here, and a log handler for the whole process, which
# would print every message twice and unredacted.
handlers = list(logging.root.handlers)
logging.disable(logging.WARNING)
from diffusionkit.mlx.config import MMDiTConfig, PositionalEncoding  # noqa: E402
from diffusionkit.mlx.mmdit import MLPEmbedder, MMDiT  # noqa: E402

logging.disable(logging.NOTSET)
logging.root.handlers[:] = handlers

WEIGHTS = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")
NOW = np.float32(0)  # the key that the MMDiT finds its modulation under


def inexpressible(config: dict[str, Any]) -> str:
    """Why the MMDiT cannot be the transformer of a diffusers config; empty where it can."""
    heads = config["num_attention_heads"] * config["attention_head_dim"]
    if config["_class_name"] == "FluxTransformer2DModel":
        if config["patch_size"] != 1:
            return f"patch_size {config['patch_size']}; the pipeline packs latents itself, so 1"
        if config["num_single_layers"] < 1:
            return "no single blocks"
    elif config["_class_name"] == "SD3Transformer2DModel":
        if config.get("dual_attention_layers"):
            return "dual_attention_layers (Stable Diffusion 3.5 medium)"
        if config.get("qk_norm") not in (None, "rms_norm"):
            return f"qk_norm `{config['qk_norm']}`; rms_norm or none"
        if config["caption_projection_dim"] != heads:
            return f"caption_projection_dim {config['caption_projection_dim']} beside a width of {heads}"
    else:
        return f"the class `{config['_class_name']}`"
    if config.get("out_channels") not in (None, config["in_channels"]):
        return f"out_channels {config['out_channels']} beside in_channels {config['in_channels']}"
    return ""


def mmdit_config(config: dict[str, Any]) -> MMDiTConfig:
    """The MMDiT's config of a diffusers transformer. FLUX tokens are packed already: patches of one, many channels."""
    heads = config["num_attention_heads"]
    common = {
        "num_heads": heads,
        "depth_multimodal": config["num_layers"],
        "hidden_size_override": heads * config["attention_head_dim"],
        "patch_size": config["patch_size"],
        "vae_latent_dim": config["in_channels"],
        "pooled_text_embed_dim": config["pooled_projection_dim"],
        "token_level_text_embed_dim": config["joint_attention_dim"],
        "dtype": mx.float32,  # of the sinusoids of the timestep
        "low_memory_mode": False,  # an option of an attention that mlx no longer has
    }
    if config["_class_name"] == "FluxTransformer2DModel":
        return MMDiTConfig(
            depth_unified=config["num_single_layers"],
            pos_embed_type=PositionalEncoding.PreSDPARope,
            rope_axes_dim=tuple(config["axes_dims_rope"]),
            patchify_via_reshape=True,
            use_qk_norm=True,
            **common,
        )
    return MMDiTConfig(
        max_latent_resolution=config["pos_embed_max_size"], use_qk_norm=config.get("qk_norm") is not None, **common
    )


def build(config: dict[str, Any]) -> MMDiT:
    """The MMDiT of a diffusers config, as the diffusers models compute, without weights yet.

    DiffusionKit drops the bias of the keys (not redundant under its normalization of keys), has the exact GELU where
    the models were trained with the tanh form, and takes FLUX's guidance in place of the timestep; all three are put
    right.
    """
    mmdit = MMDiT(mmdit_config(config))
    width = mmdit.config.hidden_size
    for block in modulated(mmdit):
        if block is not mmdit.final_layer:
            block.attn.k_proj = nn.Linear(width, width)
            if not block.skip_post_sdpa:
                block.mlp.act_fn = nn.GELU(approx="tanh")
    if config["_class_name"] == "FluxTransformer2DModel":
        mmdit.x_embedder.proj = nn.Linear(config["in_channels"], width)  # the same as its 1 x 1 convolution
        if config["guidance_embeds"]:
            mmdit.guidance_in = MLPEmbedder(mmdit.config.frequency_embed_dim, width)
    return mmdit


def modulated(mmdit: MMDiT) -> Iterator[nn.Module]:
    """The parts of the MMDiT that the timestep and the pooled text modulate."""
    for block in mmdit.multimodal_transformer_blocks:
        yield from (block.image_transformer_block, block.text_transformer_block)
    yield from unified(mmdit)
    yield mmdit.final_layer


def unified(mmdit: MMDiT) -> list[nn.Module]:
    """Its single blocks (FLUX)."""
    return [block.transformer_block for block in getattr(mmdit, "unified_transformer_blocks", [])]


def read_weights(folder: Path) -> dict[str, mx.array]:
    """Every weight of a diffusers transformer's folder by name; read from the file when first used."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if WEIGHTS.fullmatch(file.name)]
    if not files:
        raise InputError(f"{folder}: no diffusion_pytorch_model.safetensors; fetch the model again")
    return {name: value for file in files for name, value in mx.load(str(file)).items()}


def converted(name: str, value: mx.array, width: int) -> dict[str, mx.array]:
    """A weight of diffusers (name, value) under the MMDiT's names and in its layouts; `width` is the model's."""
    layer, _, kind = name.rpartition(".")
    if name == "pos_embed.pos_embed":
        return {f"{mmdit_paths('pos_embed')[0]}.weight": value[0]}
    paths = mmdit_paths(layer)
    if value.ndim == 4:
        value = value.transpose(0, 2, 3, 1)  # a convolution's channels go last
    if layer.endswith(("norm_out.linear", "norm1_context.linear")) and value.shape[0] == 2 * width:
        scale, shift = mx.split(value, 2)
        value = mx.concatenate([shift, scale])
    if len(paths) == 1:
        return {f"{paths[0]}.{kind}": value}
    if kind == "bias":  # added once: the MMDiT adds both outputs
        return {f"{paths[0]}.bias": value, f"{paths[1]}.bias": mx.zeros_like(value)}
    return dict(zip((f"{path}.{kind}" for path in paths), mx.split(value, [width], axis=1), strict=True))


def load(mmdit: MMDiT, weights: dict[str, mx.array], dtype: mx.Dtype) -> None:
    """Put a diffusers transformer's weights into the MMDiT. Raises InputError for one that it has no place for."""
    placed: list[tuple[str, mx.array]] = []
    for name, value in weights.items():
        try:
            placed += converted(name, value.astype(dtype), mmdit.config.hidden_size).items()
        except KeyError:
            raise InputError(f"the transformer's weight `{name}` has no place in DiffusionKit's MMDiT") from None
    try:
        mmdit.load_weights(placed)
    except ValueError as error:
        raise InputError(f"the transformer's weights do not fit DiffusionKit's MMDiT: {line(error)[:300]}") from None
    mx.eval(mmdit.parameters())


def velocity(
    mmdit: MMDiT, x: mx.array, text: mx.array, pooled: mx.array, timestep: mx.array, guidance: mx.array | None = None
) -> mx.array:
    """The MMDiT's prediction for latents `x` (batch, height, width, channels), in the same shape.

    `text` is (batch, tokens, channels), `pooled` (batch, channels), `timestep` and `guidance` (batch,) in thousandths.
    DiffusionKit computes the modulation of all timesteps ahead and throws its weights away; here it is computed for
    each call, so that any timestep can be asked for and the layers can be quantized.
    """
    embedded = mmdit.y_embedder(pooled) + embed(mmdit, mmdit.t_embedder.mlp, timestep, pooled.dtype)
    if guidance is not None:
        embedded = embedded + embed(mmdit, mmdit.guidance_in.mlp, guidance, pooled.dtype)
    biases = [block.mlp.fc2.bias for block in unified(mmdit)]
    try:
        for block in modulated(mmdit):
            block._modulation_params = {NOW.item(): block.adaLN_modulation(embedded[:, None, None, :])}
        return mmdit(x, text[:, :, None, :], NOW)
    finally:
        for block in modulated(mmdit):
            if hasattr(block, "_modulation_params"):
                del block._modulation_params
        # What else the MMDiT keeps of a call would be a dead tracer after mx.compile, and counts as a weight. An array
        # that is still to be computed belongs to its thread, and torch takes an accelerator's backward pass in another:
        # so the biases are those of before, computed when they were loaded.
        mmdit.pre_sdpa_rope.rope_embeddings = None
        for block, bias in zip(unified(mmdit), biases, strict=True):
            block.mlp.fc2.bias = bias


def embed(mmdit: MMDiT, mlp: nn.Module, value: mx.array, dtype: mx.Dtype) -> mx.array:
    """Sinusoids of a number per sample (batch,), through an MLP."""
    return mlp(mmdit.t_embedder.timestep_embedding(value).astype(dtype))
