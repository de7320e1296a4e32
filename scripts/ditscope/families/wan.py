"""Wan 2.1 text to video (Wan team 2025): blocks over space and time, classifier-free guidance, latents of frames.

Latents are (batch, channels, frames, height, width), also for a single frame. The VAE makes 4 n + 1 frames of n + 1
latent ones.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ditscope.families.common import DTYPES, Conditioning, combine, static_sigmas
from ditscope.settings import Model

PIPELINE = "WanPipeline"
sigmas = static_sigmas
FPS = 16  # of the videos that the model was trained on
VAE_DTYPE = torch.float32


def load(source: str, entry: Model, **kwargs: Any) -> Any:
    """The diffusers pipeline of `source`, its VAE in float32, with Euler steps in place of its multistep solver."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    dtypes = {"default": DTYPES[entry.dtype], "vae": VAE_DTYPE}
    pipe = WanPipeline.from_pretrained(source, dtype=dtypes, **kwargs)
    config = pipe.scheduler.config  # UniPC calls the time shift `flow_shift`
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=config.get("flow_shift", config.get("shift", 1.0)))
    return pipe


def uses_cfg(pipe: Any, guidance: float) -> bool:
    """Classifier-free guidance is on above 1."""
    return guidance > 1


def encode(pipe: Any, prompts: list[str], negatives: list[str], entry: Model, guidance: float) -> Conditioning:
    """UMT5 token embeddings, with the negative half under guidance; nothing is pooled (batch, 0)."""
    cfg = uses_cfg(pipe, guidance)
    embeds, negative_embeds = pipe.encode_prompt(
        prompts,
        negative_prompt=negatives if cfg else None,
        do_classifier_free_guidance=cfg,
        max_sequence_length=entry.max_sequence_length or 512,
    )
    pooled = embeds.new_zeros(len(prompts), 0)
    return Conditioning(embeds, pooled, negative_embeds, pooled if cfg else None)


def latent_shape(pipe: Any, width: int, height: int, frames: int = 1) -> tuple[int, ...]:
    """Latent (channels, frames, height, width) of `frames` pictures of `width` x `height` pixels."""
    config = pipe.vae.config
    space, time = config.scale_factor_spatial, config.scale_factor_temporal
    return config.z_dim, (frames - 1) // time + 1, height // space, width // space


def velocity(pipe: Any, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
    """The guided velocity at noise level `sigma`, in the shape of `x` (batch, channels, frames, height, width)."""
    embeds, _ = cond.stacked()
    doubled = x if embeds.shape[0] == x.shape[0] else torch.cat([x, x])
    out = pipe.transformer(
        hidden_states=doubled,
        timestep=(sigma * 1000).expand(doubled.shape[0]),
        encoder_hidden_states=embeds,
        return_dict=False,
    )[0]
    return combine(out, x.shape[0], guidance)


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Frames (batch, 3, frames, height, width) in [0, 1]; one latent frame gives an image (batch, 3, height, width)."""
    vae = pipe.vae
    mean, std = (
        torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    scaled = latents.to(vae.dtype) * std.to(vae.dtype) + mean.to(vae.dtype)
    frames = (vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)
    return frames.squeeze(2)


def blocks(transformer: nn.Module) -> dict[str, nn.Module]:
    """Every block by name (`block_0`, ...), in network order; what regional compilation compiles."""
    return {f"block_{i}": b for i, b in enumerate(transformer.blocks)}
