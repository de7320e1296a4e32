"""Cut arrays over a grid of any dimension into patches (tokens) and put them together again; NumPy or torch."""

from math import prod
from typing import Any

import numpy as np

Array = Any  # np.ndarray or torch.Tensor, the same in and out


def patch_sides(axes: int, patch: int) -> tuple[int, ...]:
    """Size of a patch along each axis: `patch` along the last two, 1 along time before them (a token has one frame)."""
    return (1,) * (axes - 2) + (patch,) * min(axes, 2)


def token_grid(space: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """Tokens along each axis of a latent of size `space`."""
    return tuple(n // side for n, side in zip(space, patch_sides(len(space), patch), strict=True))


def patchify(x: Array, patch: int) -> Array:
    """(batch, channels, *space) -> (batch, tokens, channels * values of a patch), tokens in C order of the grid."""
    batch, channels, *space = x.shape
    axes = len(space)
    sides = patch_sides(axes, patch)
    split = x.reshape(
        batch, channels, *(n for size, side in zip(space, sides, strict=True) for n in (size // side, side))
    )
    order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    return permute(split, order).reshape(batch, -1, channels * prod(sides))


def unpatchify(tokens: Array, grid: tuple[int, ...], patch: int) -> Array:
    """The inverse of `patchify`; `grid` counts the tokens along each axis."""
    axes = len(grid)
    sides = patch_sides(axes, patch)
    split = tokens.reshape(len(tokens), *grid, -1, *sides)
    order = (0, 1 + axes, *(n for axis in range(axes) for n in (1 + axis, 2 + axes + axis)))
    return permute(split, order).reshape(len(tokens), -1, *(n * side for n, side in zip(grid, sides, strict=True)))


def permute(x: Array, order: tuple[int, ...]) -> Array:
    """Reorder axes, in the library that `x` comes from."""
    return x.transpose(order) if isinstance(x, np.ndarray) else x.permute(order)
