"""What the drifting loss looks through: a frozen network whose maps are compared, of values or of decoded pictures.

An encoder is a module with `load(weights)`, which gives a network with `maps(x)`, finest first, and `SEES`: `values`
(the refiner's own, standardised) or `pictures`, (batch, 3, height, width) in [0, 1]. Where it sees pictures and the
refiner's values are latents, the gradient goes through their decoder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.core.plugins import load_plugin
from ditscope.refine.adapter import load_adapter
from ditscope.refine.settings import ENCODERS, Refine


class Normalise(nn.Module):
    """Pictures in [0, 1] less a mean, over a standard deviation, by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (batch, channels, height, width)."""
        return (pictures - self.mean) / self.std


@dataclass(frozen=True)
class Encoder:
    """A frozen network, and how the refiner's values become what it sees (None: as they are)."""

    network: nn.Module
    pictures: Callable[[Tensor], Tensor] | None = None

    def maps(self, values: Tensor) -> list[Tensor]:
        """Maps (batch, channels, *space) of standardised values (batch, channels, *space), finest first."""
        if self.pictures is None:
            return self.network.maps(values)
        pictures = self.pictures(values)
        if pictures.ndim == 4:
            return self.network.maps(pictures)
        frames = pictures.movedim(2, 1)  # each frame is a picture; positions of a map are those of all frames
        maps = self.network.maps(frames.flatten(0, 1))
        return [m.unflatten(0, frames.shape[:2]).movedim(1, 2) for m in maps]


def is_trained_here(settings: Refine) -> bool:
    """Whether the encoder is the latent masked autoencoder that is trained with the refiner."""
    return settings.encoder == "latent_mae" and not settings.encoder_weights


def load_encoder(
    settings: Refine, adapter: Mapping[str, Any], mean: np.ndarray, std: np.ndarray, device: torch.device
) -> Encoder:
    """The frozen encoder of the settings, for values that `mean` and `std` (channels,) standardise.

    `adapter` is the description of how they become pictures. Raises InputError where weights are missing or do not
    fit, and where the encoder sees pictures and these values have none.
    """
    plugin = load_plugin(settings.encoder, ENCODERS, "refine.encoder", "an encoder")
    network = plugin.load(settings.encoder_weights).to(device).eval().requires_grad_(False)
    if plugin.SEES == "values":
        return Encoder(network)
    decode = load_adapter(adapter).pictures
    if decode is None:
        raise InputError(
            f"refine.encoder: `{settings.encoder}` sees pictures, which these values have no decoder for; "
            "take latent_mae, or set the source's `model` to one with their VAE"
        )
    offset, scale = (torch.from_numpy(np.asarray(x, np.float32)).to(device) for x in (mean, std))

    def pictures(values: Tensor) -> Tensor:
        axes = (-1, *[1] * (values.ndim - 2))
        return decode(values * scale.view(axes) + offset.view(axes))

    return Encoder(network, pictures)
