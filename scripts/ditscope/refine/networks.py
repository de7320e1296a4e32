"""Networks of the refiner: a convolutional masked autoencoder of latents and a transformer over patch tokens.

Both work on grids of any dimension that torch convolves (1 to 3), and their files carry their own configuration.
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
from ditscope.refine.grids import coordinates
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


# Refiner ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RefinerConfig:
    """Shape of a refiner."""

    channels: int  # of a latent
    grid: tuple[int, ...]  # tokens along each axis
    patch: int
    width: int
    depth: int
    heads: int
    classes: int
    levels: int
    clamp_anchors: bool


class Block(nn.Module):
    """Transformer block with adaptive norm from zero (Peebles & Xie 2023), RMS-normed queries and keys, and SwiGLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norms = nn.ModuleList(nn.RMSNorm(width, elementwise_affine=False) for _ in range(2))
        self.qk_norms = nn.ModuleList(nn.RMSNorm(width // heads) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = 8 * width // 3
        self.gate_up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate_a * self.attention(self.norms[0](x) * (1 + scale_a) + shift_a)
        gate, up = self.gate_up(self.norms[1](x) * (1 + scale_m) + shift_m).chunk(2, -1)
        return x + gate_m * self.down(F.silu(gate) * up)

    def attention(self, x: Tensor) -> Tensor:
        """Self-attention over all tokens, (batch, tokens, width)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.qk_norms[0](q), self.qk_norms[1](k), v)
        return self.out(y.transpose(1, 2).flatten(2))


class Refiner(nn.Module):
    """Correct interpolated patch tokens in one step, given class, corruption level and guidance alpha.

    The output layer starts at zero: an untrained refiner returns its input.
    """

    positions: Tensor

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        size = config.channels * prod(patch_sides(len(config.grid), config.patch))
        self.embed = nn.Linear(size + 1, config.width)  # one more channel says which tokens are anchors
        self.class_embed = nn.Embedding(config.classes, config.width)
        self.level_embed = nn.Embedding(config.levels, config.width)
        self.alpha_embed = nn.Sequential(nn.Linear(1, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm, self.head = nn.RMSNorm(config.width), nn.Linear(config.width, size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("positions", position_code(config.grid, config.width), persistent=False)

    def forward(self, tokens: Tensor, anchors: Tensor, classes: Tensor, levels: Tensor, alpha: Tensor) -> Tensor:
        """Refined tokens like `tokens` (batch, tokens, size); anchors (batch, tokens) bool, levels from 1."""
        x = self.embed(torch.cat([tokens, anchors[..., None].to(tokens)], -1)) + self.positions
        condition = self.class_embed(classes) + self.level_embed(levels - 1) + self.alpha_embed(alpha[:, None])
        condition = F.silu(condition)
        for block in self.blocks:
            x = block(x, condition)
        refined = tokens + self.head(self.norm(x))
        return torch.where(anchors[..., None], tokens, refined) if self.config.clamp_anchors else refined


def position_code(grid: tuple[int, ...], width: int) -> Tensor:
    """Sines and cosines (tokens, width) of each token's position along every axis; unused channels are zero."""
    points = torch.from_numpy(coordinates(grid)).float()
    waves = width // (2 * len(grid))
    frequencies = 100.0 ** (-torch.arange(waves) / waves)
    angles = (points[:, :, None] * frequencies).flatten(1)
    code = torch.cat([angles.sin(), angles.cos()], -1)
    return F.pad(code, (0, width - code.shape[1]))


# Files --------------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[type[nn.Module], type]] = {
    "latent_mae": (LatentMAE, LatentMAEConfig),
    "refiner": (Refiner, RefinerConfig),
}


def save_network(network: LatentMAE | Refiner, mean: Tensor, std: Tensor, path: Path) -> None:
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
