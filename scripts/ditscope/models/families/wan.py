"""Wan 2.1 text to video (Wan team 2025): blocks over space and time, latents of frames, also for a single one.

The VAE makes 4 n + 1 frames of n + 1 latent ones. The makers load it in float32.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ditscope.core.films import mp4_bytes

T5 = "tokenizer"
FPS = 16  # of the videos that the model was trained on
VAE_DTYPE = torch.float32


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Frames (batch, 3, frames, height, width) in [0, 1] by a VAE alone; of one latent frame, an image."""
    vae = pipe.vae
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents.device, vae.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    scaled = latents.to(vae.dtype) / (1.0 / std) + mean  # rounded as the pipeline does
    frames = (vae.decode(scaled, return_dict=False)[0] * 0.5 + 0.5).clamp(0, 1)
    return frames.squeeze(2)


def film(frames: np.ndarray) -> bytes:
    """Frames (frames, height, width, 3) uint8 as an MP4 at the model's own rate."""
    return mp4_bytes([Image.fromarray(frame) for frame in frames], FPS)


def blocks(transformer: nn.Module) -> dict[str, nn.Module]:
    """Every block by name (`block_0`, ...), in network order; what regional compilation compiles."""
    return {f"block_{i}": b for i, b in enumerate(transformer.blocks)}
