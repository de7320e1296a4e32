"""Randomly initialised generators of the real classes, a few thousand weights each, for tests of what reads a model."""

import zlib
from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from ditscope.families import flux, sd3
from ditscope.families.common import Conditioning
from ditscope.models import Generator
from ditscope.settings import Model

ENTRIES = {
    "flux": Model("flux", "tiny", width=32, height=32, steps=5),
    "flux-distilled": Model("flux", "tiny", width=32, height=32, steps=6, guidance=3.5),
    "sd3": Model("sd3", "tiny", width=32, height=32, steps=6, guidance=3.0),
}


def tiny_generator(kind: str, name: str = "tiny") -> Generator:
    """A generator of `ENTRIES[kind]`; its text encoding is random but fixed by the prompt."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1, shift_factor=0.1,
        scaling_factor=0.5,
    )  # fmt: skip
    if kind.startswith("flux"):
        family = flux
        transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=20,
            guidance_embeds=kind == "flux-distilled", axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
        pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, transformer)
    else:
        family = sd3
        transformer = SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=20,
            pos_embed_max_size=16,
        )  # fmt: skip
        pipe = StableDiffusion3Pipeline(
            transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae, None, None, None, None, None, None
        )
    pipe.set_progress_bar_config(disable=True)
    without_encoders = SimpleNamespace(**{**vars(family), "encode": encode_at_random})
    return Generator(name, ENTRIES[kind], without_encoders, pipe, torch.device("cpu"))


def encode_at_random(pipe, prompts, negatives, entry, guidance) -> Conditioning:
    """Conditioning drawn from a generator that each prompt seeds; the negative half where the family has one."""

    def draw(texts, *shape):
        seeds = [zlib.crc32(text.encode()) for text in texts]
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])

    if isinstance(pipe, FluxPipeline) or guidance <= 1:
        return Conditioning(draw(prompts, 5, 24), draw(prompts, 20))
    return Conditioning(draw(prompts, 5, 24), draw(prompts, 20), draw(negatives, 5, 24), draw(negatives, 20))
