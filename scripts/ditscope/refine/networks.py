"""The masked autoencoder whose encoder maps are the features of the drifting loss.

It works on grids of any dimension that torch convolves (1 to 3), and its file carries its own configuration.
"""

from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditscope.core.tensor_files import save_tensors
from ditscope.refine.files import describe, read_described
from ditscope.refine.patches import patch_sides, unpatchify

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


# Latent masked autoencoder ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatentMAEConfig:
    """Shape of a latent masked autoencoder."""

    channels: int
    axes: int
    patch: int
    width: int
    scales: int


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside the identity (He et al. 2016, pre-activation)."""

    def __init__(self, conv: type[nn.Module], width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convs = nn.ModuleList(conv(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.silu(norm(y)))
        return x + y


class LatentMAE(nn.Module):
    """U-shaped autoencoder that fills in masked patches of latents; its encoder maps are the features of the loss."""

    def __init__(self, config: LatentMAEConfig) -> None:
        super().__init__()
        self.config = config
        conv = CONVOLUTIONS[config.axes]
        widths = [config.width * 2**scale for scale in range(config.scales)]
        inputs = [config.channels + 1, *widths[:-1]]  # one more channel says what is masked
        strides = [1] + [2] * (config.scales - 1)
        shapes = zip(inputs, widths, strides, strict=True)
        self.down = nn.ModuleList(conv(i, o, 3, stride=s, padding=1) for i, o, s in shapes)
        self.encoder = nn.ModuleList(nn.Sequential(*(ResidualBlock(conv, w) for _ in range(2))) for w in widths)
        self.up = nn.ModuleList(conv(2 * w, w, 1) for w in widths[:-1])
        self.decoder = nn.ModuleList(ResidualBlock(conv, w) for w in widths[:-1])
        self.head = conv(widths[0], config.channels, 1)

    def maps(self, latents: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Encoder maps (batch, width, *space), finest first; `mask` (batch, 1, *space) is 1 where values are hidden."""
        mask = torch.zeros_like(latents[:, :1]) if mask is None else mask
        x = torch.cat([latents * (1 - mask), mask], 1)
        maps = []
        for down, blocks in zip(self.down, self.encoder, strict=True):
            x = blocks(down(x))
            maps.append(x)
        return maps

    def forward(self, latents: Tensor, mask: Tensor) -> Tensor:
        """Reconstruction of latents (batch, channels, *space) whose masked patches were hidden."""
        *skips, x = self.maps(latents, mask)
        for skip, up, block in reversed(list(zip(skips, self.up, self.decoder, strict=True))):
            x = block(skip + up(F.interpolate(x, size=skip.shape[2:])))
        return self.head(x)


def patch_mask(scores: Tensor, ratio: float, grid: tuple[int, ...], patch: int) -> Tensor:
    """Mask (batch, 1, *space) of the `ratio` of patches with the smallest `scores` (batch, tokens)."""
    hidden = scores.argsort(-1).argsort(-1) < round(ratio * scores.shape[1])
    return unpatchify(hidden[..., None].repeat(1, 1, prod(patch_sides(len(grid), patch))).to(scores), grid, patch)


def mae_loss(prediction: Tensor, latents: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over hidden values only (He et al. 2022)."""
    return ((prediction - latents).square() * mask).sum() / (mask.sum() * latents.shape[1])


# Files --------------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[type[nn.Module], type]] = {"latent_mae": (LatentMAE, LatentMAEConfig)}


def save_network(network: LatentMAE, mean: Tensor, std: Tensor, path: Path) -> None:
    """Write weights, configuration and the latents' channel statistics (channels,) to one safetensors file."""
    kind = next(name for name, (module, _) in NETWORKS.items() if isinstance(network, module))
    tensors = {f"network.{k}": v.cpu() for k, v in network.state_dict().items()}
    save_tensors(
        tensors | {"latent_mean": mean, "latent_std": std}, path, describe(kind, config=asdict(network.config))
    )


def load_network(path: Path, kind: str) -> tuple[Any, Tensor, Tensor]:
    """The network that `save_network` wrote, in evaluation mode, with the latents' mean and std (channels,)."""
    about, tensors = read_described(path, kind, "pt")
    module, config_type = NETWORKS[kind]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()}
    network = module(config_type(**values))
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    return network.eval(), tensors["latent_mean"], tensors["latent_std"]
