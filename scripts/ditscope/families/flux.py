"""FLUX.1 (Black Forest Labs, 2024): double-stream then single-stream blocks over 2x2-packed latents."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditscope.families.common import DTYPES, Conditioning, vae_decode, vae_latent_shape
from ditscope.settings import Model

PIPELINE = "FluxPipeline"
decode = vae_decode
latent_shape = vae_latent_shape


def load(source: str, entry: Model, **kwargs: Any) -> Any:
    """The diffusers pipeline of `source`."""
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(source, dtype=DTYPES[entry.dtype], **kwargs)


def uses_cfg(pipe: Any, guidance: float) -> bool:
    """FLUX is guidance-distilled: one forward pass a step."""
    return False


def encode(pipe: Any, prompts: list[str], negatives: list[str], entry: Model, guidance: float) -> Conditioning:
    """T5 token embeddings and the pooled CLIP embedding of each prompt."""
    length = entry.max_sequence_length or min(512, pipe.tokenizer_2.model_max_length)
    embeds, pooled, _ = pipe.encode_prompt(prompts, prompts, max_sequence_length=length)
    return Conditioning(embeds, pooled)


def sigmas(pipe: Any, steps: int, latents: Tensor) -> Tensor:
    """Noise levels from 1 to 0, (steps + 1,); time-shifted by the number of image tokens where the model asks."""
    config = pipe.scheduler.config
    tokens = latents.shape[-1] * latents.shape[-2] // 4
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return pipe.scheduler.sigmas.float()


def velocity(pipe: Any, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float) -> Tensor:
    """The transformer's velocity at noise level `sigma`, in the shape of `x` (batch, channels, height, width)."""
    batch, _, height, width = x.shape
    transformer = pipe.transformer
    scale = torch.full((batch,), guidance, device=x.device) if transformer.config.guidance_embeds else None
    tokens = transformer(
        hidden_states=pack(x),
        timestep=sigma.to(x).expand(batch),
        guidance=scale,
        pooled_projections=cond.pooled,
        encoder_hidden_states=cond.embeds,
        txt_ids=torch.zeros(cond.embeds.shape[1], 3, device=x.device, dtype=x.dtype),
        img_ids=image_ids(height // 2, width // 2).to(x),
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)


def pack(x: Tensor) -> Tensor:
    """(batch, c, 2h, 2w) -> (batch, h w, 4c)."""
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(batch, h w, 4c) -> (batch, c, 2h, 2w), the inverse of `pack`."""
    batch, _, channels = tokens.shape
    x = tokens.view(batch, height // 2, width // 2, channels // 4, 2, 2)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def image_ids(rows: int, columns: int) -> Tensor:
    """Rotary position ids of the image tokens, (rows * columns, 3): zero, row, column."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.view(-1, 3)


def blocks(transformer: nn.Module) -> dict[str, nn.Module]:
    """Every block by name (`double_block_0`, ..., `single_block_0`, ...), in network order."""
    doubles = {f"double_block_{i}": b for i, b in enumerate(transformer.transformer_blocks)}
    return doubles | {f"single_block_{i}": b for i, b in enumerate(transformer.single_transformer_blocks)}


def block_streams(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """(image tokens, text tokens) of a block's output; diffusers returns the text stream first."""
    text, image = output
    return image, text


def project(transformer: nn.Module, image_tokens: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
    """Read a block's image tokens as if it were the last: final norm and projection, to a velocity like `latents`."""
    tokens = transformer.proj_out(transformer.norm_out(image_tokens, temb))
    return unpack(tokens, *latents.shape[-2:])
