"""Jina CLIP (Koukounas et al. 2024): texts and images in one space, by code of its own repositories.

The code wants `einops` and `timm`, which ditscope does not install.
"""

import numpy as np
import torch

from ditscope.models.embedders.registry import EmbedBatch
from ditscope.models.folders import resolve_source
from ditscope.models.remote_code import allowed_code
from ditscope.models.settings import Embedder

MODALITIES = ("text", "image")


def load(name: str, entry: Embedder, device: str) -> EmbedBatch:
    """Unit vectors of the tower that the entry's modality names, float32, by the model's own encode functions."""
    from transformers import AutoModel

    folder = str(resolve_source(name, entry, "embedders"))
    with allowed_code(f"embedders.{name}", entry):
        model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=entry.allow_remote_code,
        )  # fmt: skip
    model = model.to(device).eval()
    encode = model.encode_image if entry.modality == "image" else model.encode_text

    @torch.no_grad()
    def embed(items: list) -> np.ndarray:
        vectors = np.asarray(encode(items, batch_size=len(items)), np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)

    return embed
