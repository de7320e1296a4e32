"""Activations in int8, weights in 1 to 8 bits with a scale per row or group."""

from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis

from ditscope.models.schemes.kind import Kind, by_group, intx

KIND = Kind(
    lambda scheme: Int8DynamicActivationIntxWeightConfig(
        weight_dtype=intx(scheme), weight_granularity=by_group(scheme, PerAxis(0))
    )
)
