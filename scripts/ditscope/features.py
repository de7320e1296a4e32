"""Image features for the quality metrics, cached as safetensors under the digest of the images and of the model."""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditscope.embedders import Towers, image_features, load_towers
from ditscope.errors import InputError
from ditscope.identity import digest
from ditscope.models import default_device
from ditscope.settings import Embedder
from ditscope.staleness import source_digest

ImageFeatures = Callable[[list[Image.Image]], Tensor]


def feature_extractor(name: str, entry: Embedder, device: str | None = None) -> tuple[str, ImageFeatures]:
    """A key for the embedder's weights, and its image features (n, d), not normalised; loads at the first call."""
    if entry.family not in ("clip", "siglip", "dinov2"):
        raise InputError(
            f"benchmark.features: embedder `{name}` ({entry.family}) has no image features; use clip, siglip or dinov2"
        )
    towers: list[Towers] = []

    def features(images: list[Image.Image]) -> Tensor:
        if not towers:
            towers.append(load_towers(name, entry, device or default_device()))
        return image_features(towers[0], images)

    return f"{name} {entry.revision or source_digest(entry.source)}", features


def features_of(
    pngs: Sequence[bytes], key: str, features: ImageFeatures, cache: Path | None = None, batch_size: int = 32
) -> np.ndarray:
    """Features (n, d) float64 of PNG images, in order; read from `cache` where the same images were seen before."""
    file = cache and cache / f"{digest([key, *(hashlib.sha256(png).hexdigest() for png in pngs)])}.safetensors"
    if file and file.exists():
        return load_file(file)["features"].double().numpy()
    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    found = torch.cat([features(images[i : i + batch_size]) for i in range(0, len(images), batch_size)])
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": found.contiguous()}, file)
    return found.double().numpy()
