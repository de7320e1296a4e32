"""What families share: conditioning, dtype names, the decode of a VAE that is loaded alone."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of a batch; the negative half is present only under classifier-free guidance."""

    embeds: Tensor  # (batch, tokens, channels)
    pooled: Tensor  # (batch, channels)
    negative_embeds: Tensor | None = None
    negative_pooled: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Conditioning":
        """The same conditioning for some rows of the batch."""
        return replace(self, **{k: v[rows] for k, v in vars(self).items() if v is not None})

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Embeds and pooled with the negative half, if any, appended: [cond, uncond] along the batch."""
        if self.negative_embeds is None or self.negative_pooled is None:
            return self.embeds, self.pooled
        return torch.cat([self.embeds, self.negative_embeds]), torch.cat([self.pooled, self.negative_pooled])


def combine(out: Tensor, batch: int, guidance: float) -> Tensor:
    """Classifier-free guidance over a [cond, uncond] batch; a plain batch passes unchanged."""
    if out.shape[0] == batch:
        return out
    cond, uncond = out.chunk(2)
    return uncond + guidance * (cond - uncond)


def vae_encode(pipe: Any, pictures: Tensor) -> Tensor:
    """Latents of pictures (batch, 3, height, width) in [0, 1], the mean of what the VAE gives: `vae_decode` undone."""
    vae = pipe.vae
    latents: Tensor = vae.encode(pictures.to(vae.dtype) * 2 - 1).latent_dist.mode()
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def vae_decode(pipe: Any, latents: Tensor) -> Tensor:
    """Images (batch, 3, height, width) in [0, 1] from latents by a VAE that is loaded alone, as the pipeline's own."""
    vae = pipe.vae
    latents = latents.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return (vae.decode(latents, return_dict=False)[0] * 0.5 + 0.5).clamp(0, 1)
