"""Weights and activations in NVFP4, the activations' scales taken as they come."""

from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig

from ditscope.models.schemes.kind import Kind

KIND = Kind(
    lambda scheme: NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=False), capability=(10, 0), multiple=16
)
