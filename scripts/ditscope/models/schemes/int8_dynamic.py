"""Weights and activations in int8, the activations' scale taken per token as they come."""

from torchao.quantization import Int8DynamicActivationInt8WeightConfig

from ditscope.models.schemes.kind import PURE, Kind

KIND = Kind(lambda scheme: Int8DynamicActivationInt8WeightConfig(**PURE))
