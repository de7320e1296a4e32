"""Cut arrays over a grid of any dimension into patches (tokens) and put them together again; NumPy or torch."""

from typing import Any

import numpy as np

Array = Any  # np.ndarray or torch.Tensor, the same in and out


def token_grid(space: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """Tokens along each axis of a latent of size `space`."""
    return tuple(side // patch for side in space)


def patchify(x: Array, patch: int) -> Array:
    """(batch, channels, *space) -> (batch, tokens, channels * patch^axes), tokens in C order of the grid."""
    batch, channels, *space = x.shape
    axes = len(space)
    split = x.reshape(batch, channels, *(n for side in space for n in (side // patch, patch)))
    order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    return permute(split, order).reshape(batch, -1, channels * patch**axes)


def unpatchify(tokens: Array, grid: tuple[int, ...], patch: int) -> Array:
    """The inverse of `patchify`; `grid` counts the tokens along each axis."""
    axes = len(grid)
    split = tokens.reshape(len(tokens), *grid, -1, *[patch] * axes)
    order = (0, 1 + axes, *(n for axis in range(axes) for n in (1 + axis, 2 + axes + axis)))
    return permute(split, order).reshape(len(tokens), -1, *(side * patch for side in grid))


def permute(x: Array, order: tuple[int, ...]) -> Array:
    """Reorder axes, in the library that `x` comes from."""
    return x.transpose(order) if isinstance(x, np.ndarray) else x.permute(order)
