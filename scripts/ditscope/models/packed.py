"""Bytes of a layer's quantized weights when packed, by back end: what plans are solved with and `quantize` reports."""

import math

from ditscope.models.mlx.names import AFFINE, MLX_BITS, MLX_GROUPS, row_lengths

SCALE_BITS = 16  # one half-precision scale per group of weights
INTX_BITS = tuple(range(1, 9))  # that torchao has integers of


def effective_group_size(row: int, group_size: int) -> int:
    """Weights of a row of length `row` that share a scale: `group_size` where it divides the row, else the row."""
    return group_size if group_size and row % group_size == 0 else row


def intx_bytes(weights: int, bits: int, shared: int) -> int:
    """Bytes of `weights` integers of `bits` bits (asymmetric): per `shared` weights a 16-bit scale, and a zero point.

    A zero point has `bits` bits. torchao keeps integers of 2 to 7 bits in bytes: this is their size in a packed file.
    """
    return math.ceil((weights * bits + weights // shared * (SCALE_BITS + bits)) / 8)


def mlx_bytes(weights: int, bits: int, group_size: int, itemsize: int, mode: str = AFFINE) -> int:
    """Bytes of `weights` in MLX's packing: per group a scale and a bias in the type of the weights (`itemsize` bytes).

    In another mode a scale of one byte alone. Without a group size, 16-bit weights as they are.
    """
    groups = weights // group_size if group_size else 0
    return weights * bits // 8 + groups * (2 * itemsize if mode == AFFINE else 1)


def packed_bytes(
    backend: str, layer: str, out_features: int, in_features: int, bits: int, group_size: int, itemsize: int
) -> int | None:
    """Bytes of a linear layer under a bit plan, as `plan.to_fqn_config` or `plan.to_mlx` has the back end store it.

    None where it cannot store it so: no integers of these bits or, on MLX, no groups of this size or rows that they do
    not divide. Palettes are stored by no back end: their plans become integers by group as well.
    """
    weights = out_features * in_features
    if backend != "mlx":
        group = effective_group_size(in_features, group_size)
        return intx_bytes(weights, bits, group) if bits in INTX_BITS else None
    rows = row_lengths(layer, in_features, out_features)
    if bits not in MLX_BITS or group_size not in MLX_GROUPS or any(row % group_size for row in rows):
        return None
    return mlx_bytes(weights, bits, group_size, itemsize)
