"""Weights packed by MLX in 2 to 8 bits with a scale and bias per group, 16 bits, or its modes MXFP4, MXFP8, NVFP4."""

from ditscope.core.errors import InputError
from ditscope.models.mlx.names import MLX_BITS, MLX_GROUPS, MLX_MODES, MlxConfig
from ditscope.models.schemes.kind import Kind
from ditscope.models.settings import Scheme


def config(scheme: Scheme) -> MlxConfig:
    """MLX's config of a scheme's bits and group size (64 where it names none), or of the mode that is its format."""
    if scheme.format in MLX_MODES:
        return MlxConfig(*MLX_MODES[scheme.format], scheme.format)
    if scheme.format != "int":
        raise InputError(f"schemes: format: `{scheme.format}` is none of MLX's: int, {', '.join(MLX_MODES)}")
    group = scheme.group_size or 64
    if scheme.bits != 16 and (scheme.bits not in MLX_BITS or group not in MLX_GROUPS):
        raise InputError(
            f"schemes: `{scheme.kind}` with bits: {scheme.bits}, group_size: {group}; "
            f"MLX packs bits of {MLX_BITS} in groups of {MLX_GROUPS}, or 16 bits"
        )
    return MlxConfig(scheme.bits, 0 if scheme.bits == 16 else group)


KIND = Kind(config)
