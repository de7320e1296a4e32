"""Weights and activations in MXFP8: float8 (e4m3) with a power of two for every 32."""

import torch

from ditscope.models.schemes.kind import Kind, microscaling

KIND = Kind(lambda scheme: microscaling(torch.float8_e4m3fn), dtypes=("bfloat16",), multiple=32)
