"""Stable Diffusion XL and its distillation SDXL-Turbo (Sauer et al. 2023): a U-Net, sampled by the diffusers pipeline.

No flow matching: the noise schedule is the pipeline's own and its ancestral sampler draws more noise at every step. So
this family has a `sample` of its own in place of `sigmas` and `velocity`.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ditscope.families.common import DTYPES, Conditioning, vae_decode, vae_latent_shape
from ditscope.settings import Model

PIPELINE = "StableDiffusionXLPipeline"
VAE_DTYPE = torch.float32  # it overflows float16
decode = vae_decode
latent_shape = vae_latent_shape


def load(source: str, entry: Model, **kwargs: Any) -> Any:
    """The diffusers pipeline of `source`; its VAE stays in float32, since it overflows float16."""
    from diffusers import StableDiffusionXLPipeline

    dtypes = {"default": DTYPES[entry.dtype], "vae": VAE_DTYPE}
    pipe = StableDiffusionXLPipeline.from_pretrained(source, dtype=dtypes, **kwargs)
    pipe.transformer = pipe.unet  # the network that is quantized, under the name that it has in every family
    return pipe


def uses_cfg(pipe: Any, guidance: float) -> bool:
    """Classifier-free guidance is on above 1; SDXL-Turbo was distilled to run without."""
    return guidance > 1


def encode(pipe: Any, prompts: list[str], negatives: list[str], entry: Model, guidance: float) -> Conditioning:
    """Token embeddings of both CLIP encoders and the pooled one of the second; the negative half under guidance."""
    cfg = uses_cfg(pipe, guidance)
    embeds, negative_embeds, pooled, negative_pooled = pipe.encode_prompt(
        prompts, do_classifier_free_guidance=cfg, negative_prompt=negatives if cfg else None
    )
    return Conditioning(embeds, pooled, negative_embeds, negative_pooled)


def sample(pipe: Any, noise: Tensor, cond: Conditioning, steps: int, guidance: float) -> Tensor:
    """Latents like `noise` (batch, channels, height, width), which has unit variance, by the pipeline's own sampler."""
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    return pipe(
        prompt_embeds=cond.embeds,
        pooled_prompt_embeds=cond.pooled,
        negative_prompt_embeds=cond.negative_embeds,
        negative_pooled_prompt_embeds=cond.negative_pooled,
        height=noise.shape[-2] * factor,
        width=noise.shape[-1] * factor,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise,
        generator=step_generators(noise),
        output_type="latent",
    ).images


def step_generators(noise: Tensor) -> list[torch.Generator]:
    """One CPU generator a sample for the sampler's noise, seeded by its starting noise: the batch plays no part."""
    digests = [hashlib.sha256(row.float().cpu().contiguous().numpy().tobytes()).digest() for row in noise]
    return [torch.Generator("cpu").manual_seed(int.from_bytes(digest[:6], "little")) for digest in digests]


def blocks(unet: nn.Module) -> dict[str, nn.Module]:
    """Every transformer block by its place in the U-Net; what regional compilation compiles."""
    from diffusers.models.attention import BasicTransformerBlock

    return {name: module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)}
