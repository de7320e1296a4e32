"""Two of every four weights in float8 with a scale per row; activations in float8."""

from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow
from torchao.quantization.quantize_.workflows import Float8PackingFormat

from ditscope.models.schemes.kind import PURE, Kind

KIND = Kind(
    lambda scheme: Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), packing_format=Float8PackingFormat.SPARSE_2D_DATA_2D_METADATA, **PURE
    ),
    capability=(9, 0),
    dtypes=("bfloat16",),
    multiple=64,
    operator="torchao::rowwise_scaled_linear_sparse_cutlass_f8f8",
    sparse=True,
)
