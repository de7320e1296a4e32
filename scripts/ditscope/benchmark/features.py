"""Features for the quality metrics, cached as safetensors under the digest of images or texts and of the model."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ditscope.core.atomic import replacing
from ditscope.core.digests import source_digest
from ditscope.core.errors import InputError
from ditscope.core.identity import digest
from ditscope.core.picture_file import rgb_image
from ditscope.core.tensor_files import save_tensors
from ditscope.models.embedders import efficientnet_lite
from ditscope.models.embedders.towers import Towers, image_features, load_towers, text_features
from ditscope.models.loading import default_device
from ditscope.models.settings import Embedder


@dataclass(frozen=True)
class Extractor:
    """An embedder's features, which load it at the first call.

    `key` names its weights. `images` gives image features (n, d), not normalised. `texts` gives the rows of a zero-shot
    classifier (Radford et al. 2021): unit text embeddings (n, d) times the model's logit scale; None where there is no
    text tower.
    """

    key: str
    images: Callable[[list[Image.Image]], Tensor]
    texts: Callable[[list[str]], Tensor] | None = None


def feature_extractor(name: str, entry: Embedder, device: str | None = None) -> Extractor:
    """The features of an embedder of the registry. Raises InputError where it does not embed images."""
    if entry.family == efficientnet_lite.FAMILY:
        return imagenet_extractor(name, device)
    if entry.family not in ("clip", "siglip", "dinov2"):
        raise InputError(
            f"benchmark.features: embedder `{name}` ({entry.family}) has no image features; use clip, siglip, dinov2 "
            f"or {efficientnet_lite.FAMILY}"
        )
    loaded: list[Towers] = []

    def towers() -> Towers:
        if not loaded:
            loaded.append(load_towers(name, entry, device or default_device()))
        return loaded[0]

    def images(pictures: list[Image.Image]) -> Tensor:
        return image_features(towers(), pictures)

    def texts(words: list[str]) -> Tensor:
        unit = F.normalize(text_features(towers(), words), dim=-1)
        return unit * towers().model.logit_scale.detach().exp().float().cpu()

    key = f"{name} {entry.revision or source_digest(entry.source)}"
    return Extractor(key, images, None if entry.family == "dinov2" else texts)


def imagenet_extractor(name: str, device: str | None) -> Extractor:
    """The features of EfficientNet-Lite0. Raises InputError where the packages that carry it are not installed."""
    if reason := efficientnet_lite.missing():
        raise InputError(f"embedder `{name}`: {reason}")
    loaded: list[Any] = []

    def images(pictures: list[Image.Image]) -> Tensor:
        if not loaded:
            loaded.append(efficientnet_lite.load_network(device or default_device()))
        return efficientnet_lite.image_features(loaded[0], pictures)

    return Extractor(f"{name} {efficientnet_lite.WEIGHTS_SHA256}", images)


def features_of(
    pngs: Sequence[bytes], extractor: Extractor, cache: Path | None = None, batch_size: int = 32
) -> np.ndarray:
    """Features (n, d) float64 of PNG images, in order; read from `cache` where the same images were seen before."""

    def compute() -> Tensor:
        images = [rgb_image(png) for png in pngs]
        return torch.cat([extractor.images(images[i : i + batch_size]) for i in range(0, len(images), batch_size)])

    return cached([extractor.key, *(hashlib.sha256(png).hexdigest() for png in pngs)], compute, cache)


def text_rows(texts: Sequence[str], extractor: Extractor, cache: Path | None = None) -> np.ndarray:
    """Rows (n, d) float64 of the zero-shot classifier of texts, in order; from `cache` where it has them."""
    embed = extractor.texts
    if embed is None:
        raise ValueError(f"{extractor.key} has no text tower")
    return cached([extractor.key, "texts", *texts], lambda: embed(list(texts)), cache)


def cached(key: list[str], compute: Callable[[], Tensor], cache: Path | None) -> np.ndarray:
    """`compute()` as float64, kept as float32 in `cache` under the digest of `key`."""
    file = cache and cache / f"{digest(key)}.safetensors"
    if file and file.exists():
        return load_file(file)["features"].double().numpy()
    features = compute()
    if file:
        with replacing(file, shared=True) as partial:
            save_tensors({"features": features}, partial)
    return features.double().numpy()


def zero_shot_logits(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Class logits (n, classes) of image features (n, d) under the rows (classes, d) of a zero-shot classifier."""
    return features / np.linalg.norm(features, axis=1, keepdims=True) @ rows.T
