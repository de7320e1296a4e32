"""Randomly initialised generators of the real classes, a few thousand weights each, for tests of what reads a model."""

import zlib

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from ditscope.models.families import flux, sd3
from ditscope.models.loading import Generator
from ditscope.models.settings import Model

ENTRIES = {
    "flux": Model("flux", "tiny", width=32, height=32, steps=5, guidance=0.0),
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
    pipe.encode_prompt = lambda *args, **options: encode_at_random(pipe, *args, **options)
    return Generator(name, ENTRIES[kind], family, pipe, torch.device("cpu"))


def encode_at_random(pipe, prompt, *args, negative_prompt=None, do_classifier_free_guidance=False, **options):
    """What `encode_prompt` of the pipeline returns, each text drawn from a generator that it seeds."""
    if options.get("prompt_embeds") is not None:  # texts that are encoded already come back as they are
        return type(pipe).encode_prompt(
            pipe, prompt, *args, **options, **({"negative_prompt": negative_prompt, "do_classifier_free_guidance":
            do_classifier_free_guidance} if isinstance(pipe, StableDiffusion3Pipeline) else {}),
        )  # fmt: skip

    def draw(texts, *shape):
        seeds = [zlib.crc32(text.encode()) for text in texts]
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(drawn).to(pipe.transformer.dtype)

    embeds, pooled = draw(prompt, 5, 24), draw(prompt, 20)
    if isinstance(pipe, FluxPipeline):
        return embeds, pooled, torch.zeros(5, 3, dtype=embeds.dtype)
    if not do_classifier_free_guidance:
        return embeds, None, pooled, None
    negative = negative_prompt or [""] * len(prompt)
    return embeds, draw(negative, 5, 24), pooled, draw(negative, 20)
