"""Texts and images by the towers of CLIP, SigLIP and DINOv2, as transformers has them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.models.embedders.registry import EmbedBatch
from ditscope.models.folders import resolve_source
from ditscope.models.remote_code import allowed_code
from ditscope.models.settings import Embedder

MODALITIES = ("text", "image")


@dataclass(frozen=True)
class Towers:
    """A loaded transformers model that embeds images, and texts if it has a text tower."""

    model: Any
    processor: Any
    device: torch.device


def load_towers(name: str, entry: Embedder, device: str) -> Towers:
    """The transformers model and processor of a folder (CLIP, SigLIP, DINOv2), in float32 and evaluation mode."""
    from transformers import AutoImageProcessor, AutoModel, AutoProcessor

    folder = str(resolve_source(name, entry, "embedders"))
    options = {"local_files_only": True, "trust_remote_code": entry.allow_remote_code}
    places = {"": torch.device(device)}  # straight to the device, and not through host memory
    with allowed_code(f"embedders.{name}", entry):
        model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, device_map=places, **options
        )
        kind = AutoImageProcessor if entry.family == "dinov2" else AutoProcessor
        processor = kind.from_pretrained(folder, **options)
    return Towers(model.eval(), processor, torch.device(device))


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


def load(name: str, entry: Embedder, device: str) -> EmbedBatch:
    """Unit vectors of the tower that the entry's modality names."""
    if entry.family == "dinov2" and entry.modality != "image":
        raise InputError(f"embedders.{name}.modality: `dinov2` embeds image, not {entry.modality}")
    towers = load_towers(name, entry, device)
    features = image_features if entry.modality == "image" else text_features
    return lambda items: F.normalize(features(towers, items), dim=-1).numpy()
