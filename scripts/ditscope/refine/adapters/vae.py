"""Latents of a model's VAE, as the model itself scales them; of a film frame by frame."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.core.settings import decode as decode_settings
from ditscope.models.folders import resolve_source
from ditscope.models.loading import default_device
from ditscope.models.registry import family_of
from ditscope.models.settings import Model
from ditscope.refine.adapter import Adapter

BATCH = 32  # pictures that the VAE takes at once


def load(about: Mapping[str, Any]) -> Adapter:
    """The VAE of the model `about["model"]`, whose registry entry is `about["entry"]`, in float32."""
    family, pipe = load_vae(about)
    if not hasattr(family, "encode"):
        raise InputError(f"source.model: the family of `{about['model']}` encodes no pictures; choose another model")

    def encode(pictures: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, -3) / 255
        return by_frame(lambda batch: family.encode(pipe, batch), scaled, 1, 2)

    def decode(values: np.ndarray) -> np.ndarray:
        latents = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        frames = latents.movedim(2, 1) if latents.ndim == 5 else latents
        return to_bytes(by_frame(lambda batch: family.decode(pipe, batch), frames, 1, 1))

    def pictures(values: Tensor) -> Tensor:
        if values.ndim == 4:
            return family.decode(pipe, values)
        frames = family.decode(pipe, values.movedim(2, 1).flatten(0, 1))
        return frames.unflatten(0, (len(values), -1)).movedim(1, 2)

    return Adapter(encode, decode, pictures)


def load_vae(about: Mapping[str, Any]) -> tuple[Any, Any]:
    """The module of a model's family, and a stand-in of its pipeline that holds the VAE alone."""
    from diffusers import AutoModel

    entry = decode_settings(Model, about["entry"], f"models.{about['model']}")
    folder, device = resolve_source(about["model"], entry), default_device()
    vae = AutoModel.from_pretrained(str(folder), subfolder="vae", dtype=torch.float32).to(device).eval()
    return family_of(about["model"], entry), SimpleNamespace(vae=vae.requires_grad_(False))


@torch.no_grad()
def by_frame(network: Callable[[Tensor], Tensor], batch: Tensor, before: int, after: int) -> np.ndarray:
    """A network of pictures on (n, c, h, w) or, frame by frame, on (n, frames, c, h, w).

    The axis of frames, second in what is given, is axis `after` of what comes out: 2 (n, c, frames, h, w), or 1.
    """
    device = default_device()
    frames = batch.flatten(0, 1) if batch.ndim == 5 else batch
    made = torch.cat([network(part.to(device)).float().cpu() for part in frames.split(BATCH)])
    if batch.ndim == 5:
        made = made.unflatten(0, batch.shape[:2]).movedim(before, after)
    return made.numpy()


def to_bytes(pictures: np.ndarray) -> np.ndarray:
    """Pictures (..., 3, height, width) in [0, 1] as (..., height, width, 3) uint8."""
    return np.rint(np.moveaxis(pictures, -3, -1).clip(0, 1) * 255).astype(np.uint8)
