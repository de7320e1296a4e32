"""Weights in NVFP4: float4 (e2m1) with a float8 scale for every 16 and one for the tensor."""

from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig

from ditscope.models.schemes.kind import Kind

KIND = Kind(lambda scheme: NVFP4WeightOnlyConfig(), multiple=16)
