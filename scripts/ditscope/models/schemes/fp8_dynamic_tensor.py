"""Weights and activations in float8 (e4m3), one scale per tensor."""

from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerTensor

from ditscope.models.schemes.kind import PURE, Kind

KIND = Kind(
    lambda scheme: Float8DynamicActivationFloat8WeightConfig(granularity=PerTensor(), **PURE),
    capability=(8, 9),
    multiple=16,
)
