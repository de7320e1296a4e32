"""Weights in int4 by groups, packed for the tensor cores (tinygemm); activations in full precision."""

from torchao.quantization import Int4WeightOnlyConfig
from torchao.quantization.quantize_.workflows import Int4PackingFormat

from ditscope.models.schemes.kind import PURE, Kind

KIND = Kind(
    lambda scheme: Int4WeightOnlyConfig(
        group_size=scheme.group_size or 128, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D, **PURE
    ),
    capability=(8, 0),
    dtypes=("bfloat16",),
)
