"""Latents that are there, as the model whose they are scales them; decoded by its VAE where the model is named."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ditscope.models.loading import default_device
from ditscope.refine.adapter import Adapter
from ditscope.refine.adapters.vae import BATCH, load_vae, to_bytes


def load(about: Mapping[str, Any]) -> Adapter:
    """The adapter; without `about["model"]` there is no way back to pictures. Nothing is encoded."""
    if not about.get("model"):
        return Adapter(None, None)
    family, pipe = load_vae(about)

    @torch.no_grad()
    def decode(values: np.ndarray) -> np.ndarray:
        latents = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        parts = latents.split(BATCH if latents.ndim == 4 else 1)
        made = [family.decode(pipe, part.to(default_device())).float().cpu().numpy() for part in parts]
        pictures = np.concatenate(made)  # (n, 3, [frames,] height, width)
        return to_bytes(np.moveaxis(pictures, 1, -3))

    return Adapter(None, decode, lambda values: family.decode(pipe, values))
