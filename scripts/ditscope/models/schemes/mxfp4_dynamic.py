"""Weights and activations in MXFP4: float4 (e2m1) with a power of two for every 32."""

import torch

from ditscope.models.schemes.kind import Kind, microscaling

KIND = Kind(lambda scheme: microscaling(torch.float4_e2m1fn_x2), dtypes=("bfloat16",), multiple=32)
