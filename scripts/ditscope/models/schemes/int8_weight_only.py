"""Weights in int8 with a scale per row or group; activations in full precision."""

from torchao.quantization import Int8WeightOnlyConfig, PerRow

from ditscope.models.schemes.kind import PURE, Kind, by_group

KIND = Kind(lambda scheme: Int8WeightOnlyConfig(granularity=by_group(scheme, PerRow()), **PURE))
