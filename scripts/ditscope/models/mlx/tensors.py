"""Torch's tensors as MLX's arrays and back."""

import mlx.core as mx
import numpy as np
import torch
from torch import Tensor


def to_mlx_array(tensor: Tensor) -> mx.array:
    """A torch tensor in float32 on MLX."""
    return mx.array(tensor.detach().float().cpu().contiguous().numpy())


def to_torch(array: mx.array, like: Tensor) -> Tensor:
    """An MLX array as a torch tensor of the type and on the device of `like`; waits until MLX has computed it."""
    return torch.from_numpy(np.array(array.astype(mx.float32))).to(like)
