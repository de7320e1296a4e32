"""Weights in float8 (e4m3) with a scale per row; activations in full precision."""

from torchao.quantization import Float8WeightOnlyConfig

from ditscope.models.schemes.kind import PURE, Kind

KIND = Kind(lambda scheme: Float8WeightOnlyConfig(**PURE))
