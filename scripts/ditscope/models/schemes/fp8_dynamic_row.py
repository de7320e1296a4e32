"""Weights and activations in float8 (e4m3), a scale per row of each."""

from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

from ditscope.models.schemes.kind import PURE, Kind

KIND = Kind(
    lambda scheme: Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), **PURE),
    capability=(8, 9),
    dtypes=("bfloat16",),
    multiple=16,
)
