"""Weights in 1 to 8 bits with a scale per row or group; torchao stores them as int8."""

from torchao.quantization import IntxWeightOnlyConfig, PerAxis

from ditscope.models.schemes.kind import Kind, by_group, intx

KIND = Kind(lambda scheme: IntxWeightOnlyConfig(weight_dtype=intx(scheme), granularity=by_group(scheme, PerAxis(0))))
