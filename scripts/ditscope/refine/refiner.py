"""The refiner: one transformer over tokens of pictures, films and paths that corrects an interpolation in one step.

Positions are axial rotary ones, so that no grid is built in. Of a film, attention is factorised into space and time.
Conditions: the text's tokens and, of a film, the content of all keys by cross-attention; how much is known, the
pseudo-class and the guidance alpha by modulation (adaLN-single, Chen et al., arXiv:2310.00426).
"""

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditscope.refine.grids import Grid, coordinates
from ditscope.refine.patches import patch_sides

MARKS = 3  # numbers of a token beside its values: key, confidence, what the interpolation says of itself
BASE = 100.0  # of the rotary frequencies: from 1 down to 1 / 100 radian per token


@dataclass(frozen=True)
class RefinerConfig:
    """Shape of a refiner."""

    channels: int  # of a sample's values
    axes: int  # 1: steps of a path, 2: rows and columns, 3: frames, rows and columns
    patch: int  # side of a token along rows and columns
    width: int
    depth: int
    heads: int
    classes: int  # pseudo-classes; one more stands for none
    text_width: int  # of a token of the text; 0: there is no text


@dataclass(frozen=True)
class RefinerInput:
    """A batch of corrupted samples as tokens in C order of the grid, and what a refiner is told of them."""

    tokens: Tensor  # (batch, tokens, size)
    keys: Tensor  # (batch, tokens) bool: which are known
    confidence: Tensor  # (batch, tokens) in [0, 1]: how far each is to be trusted
    sureness: Tensor  # (batch, tokens) in [0, 1]: what the interpolation says of itself
    text: Tensor  # (batch, words, text width)
    words: Tensor  # (batch, words) bool: which are there
    classes: Tensor  # (batch,) pseudo-class; the number of classes stands for none
    alpha: Tensor  # (batch,) guidance, 1 for none


class Attention(nn.Module):
    """Attention with RMS-normed queries and keys, rotary where positions are given."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(context, 2 * width)
        self.norms = nn.ModuleList(nn.RMSNorm(width // heads) for _ in range(2))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, turns: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """Tokens x (batch, n, width) attends to context (batch, m, ...), of which `seen` (batch, m) is there."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.norms[0](q), self.norms[1](k)
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        mask = None if seen is None else seen[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward network (Shazeer, arXiv:2002.05202)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3
        self.gate_up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


@dataclass(frozen=True)
class Scene:
    """What all blocks see of a batch."""

    grid: Grid
    space: Tensor  # (tokens of a frame, head, 2) rotary turns
    time: Tensor  # (frames, head, 2)
    everywhere: Tensor  # (tokens, head, 2)
    text: Tensor
    words: Tensor
    key_content: Tensor  # (batch, tokens, width)
    keys: Tensor


class Block(nn.Module):
    """Attention in space, in time, to text and to keys, then SwiGLU, each where it applies, with gates from zero."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        parts: dict[str, nn.Module] = {}
        if config.axes > 1:
            parts["space"] = Attention(width, heads, width)
        if config.axes != 2:
            parts["time"] = Attention(width, heads, width)
        if config.text_width:
            parts["text"] = Attention(width, heads, width)
        if config.axes == 3:  # in a picture or path the attention above sees every key
            parts["known"] = Attention(width, heads, width)
        self.parts = nn.ModuleDict(parts | {"feed": SwiGLU(width)})
        self.table = nn.Parameter(torch.randn(3 * len(self.parts), width) / width**0.5)

    def forward(self, x: Tensor, modulation: Tensor, scene: Scene) -> Tensor:
        """Tokens x (batch, tokens, width); modulation (batch, 3 for each part, width)."""
        entries = (modulation + self.table).chunk(len(self.parts), 1)
        for (name, part), entry in zip(self.parts.items(), entries, strict=True):
            shift, scale, gate = entry[:, :, None].unbind(1)
            y = F.rms_norm(x, x.shape[-1:]) * (1 + scale) + shift
            x = x + gate * attend(name, part, y, scene)
        return x


def attend(name: str, part: nn.Module, x: Tensor, scene: Scene) -> Tensor:
    """What one part of a block gives for x (batch, tokens, width)."""
    frames = scene.grid[0] if len(scene.grid) != 2 else 1
    if name == "space":
        inside = x.unflatten(1, (frames, -1)).flatten(0, 1)
        return part(inside, inside, scene.space).unflatten(0, (len(x), -1)).flatten(1, 2)
    if name == "time":
        along = x.unflatten(1, (frames, -1)).transpose(1, 2).flatten(0, 1)
        return part(along, along, scene.time).unflatten(0, (len(x), -1)).transpose(1, 2).flatten(1, 2)
    if name == "text":
        return part(x, scene.text, None, scene.words)
    if name == "known":
        return part(x, scene.key_content, scene.everywhere, scene.keys)
    return part(x)


class Refiner(nn.Module):
    """Correct interpolated tokens in one step. The output layer starts at zero: untrained, it returns its input."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        size = config.channels * prod(patch_sides(config.axes, config.patch))
        self.embed = nn.Linear(size + MARKS, width)
        self.class_embed = nn.Embedding(config.classes + 1, width)
        nn.init.normal_(self.class_embed.weight, std=0.02)
        self.numbers = nn.Sequential(nn.Linear(2 * WAVES * 2, width), nn.SiLU(), nn.Linear(width, width))
        if config.text_width:
            self.text_embed = nn.Linear(config.text_width, width)
            self.no_text = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        parts = 3 * len(self.blocks[0].parts) if config.depth else 0
        self.modulation = nn.Linear(width, (parts + 2) * width)
        self.head = nn.Linear(width, size)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():  # gates start at zero
            for block in self.blocks:
                block.table[2::3] = 0

    def forward(self, inputs: RefinerInput, grid: Grid) -> Tensor:
        """Refined tokens (batch, tokens, size) over `grid`, keys among them."""
        marks = torch.stack([inputs.keys, inputs.confidence, inputs.sureness], -1).to(inputs.tokens)
        x = self.embed(torch.cat([inputs.tokens, marks], -1))
        known = inputs.keys.float().mean(1).clamp_min(1e-6).log2()
        numbers = torch.cat([waves(known), waves(inputs.alpha)], -1).to(x.dtype)
        condition = F.silu(self.class_embed(inputs.classes) + self.numbers(numbers))
        modulation = self.modulation(condition).unflatten(-1, (-1, self.config.width))
        scene = self.scene(inputs, grid, x)
        for block in self.blocks:
            x = block(x, modulation[:, 2:], scene)
        shift, scale = modulation[:, :2].unbind(1)
        x = F.rms_norm(x, x.shape[-1:]) * (1 + scale[:, None]) + shift[:, None]
        return inputs.tokens + self.head(x)

    def scene(self, inputs: RefinerInput, grid: Grid, x: Tensor) -> Scene:
        """What all blocks see: rotary turns of the grid, text with a token for no text, and the keys."""
        size = self.config.width // self.config.heads
        still = grid if len(grid) == 2 else grid[1:]
        space, time, everywhere = (rotary_turns(part, size).to(x) for part in (still or (1,), grid[:1], grid))
        text, words = inputs.text, inputs.words
        if self.config.text_width:
            none = self.no_text.expand(len(x), -1, -1).to(x.dtype)
            text = torch.cat([none, self.text_embed(text)], 1)
            words = F.pad(words, (1, 0), value=True)
        return Scene(grid, space, time, everywhere, text, words, x, inputs.keys)


WAVES = 8


def waves(numbers: Tensor) -> Tensor:
    """Sines and cosines (batch, 2 * WAVES) of numbers (batch,) at wavelengths from 64 down to 1/2."""
    angles = numbers[:, None] * (2 * torch.pi / 64) * 2.0 ** torch.arange(WAVES, device=numbers.device)
    return torch.cat([angles.sin(), angles.cos()], -1)


@cache
def rotary_turns(grid: Grid, size: int) -> Tensor:
    """Cosine and sine (tokens, size / 2, 2) by which each pair of a head of `size` numbers is turned, axes in turn.

    Axial rotary positions (Su et al., arXiv:2104.09864, an equal share of the pairs to each axis).
    """
    share = size // 2 // len(grid)
    frequencies = BASE ** (-torch.arange(share) / max(share - 1, 1))
    points = torch.from_numpy(coordinates(grid)).float()
    angles = (points[:, :, None] * frequencies).flatten(1)
    angles = F.pad(angles, (0, size // 2 - angles.shape[1]))  # pairs left over are not turned
    return torch.stack([angles.cos(), angles.sin()], -1)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) of heads x (batch, heads, tokens, size) by `turns` (tokens, size / 2, 2)."""
    a, b = x.chunk(2, -1)
    cos, sin = turns.unbind(-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
