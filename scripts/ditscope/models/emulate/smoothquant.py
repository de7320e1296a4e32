"""SmoothQuant: move the outliers of activations into the weights, channel by channel.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023
(arXiv 2211.10438), equations 3 and 4.
"""

import torch
from torch import Tensor

LEAST = 1e-5  # of a channel's magnitude: one that is always 0 has no scale


def smoothing(absmax: Tensor, weight: Tensor, alpha: float = 0.5) -> Tensor:
    """Equation 4: s (in,) = max|x|^alpha / max|w|^(1 - alpha) of each input channel, in 16 bits.

    Equation 3: x diag(s)^-1 and W diag(s) have the product of x and W. `weight` is (out, in).
    """
    inputs, weights = absmax.clamp(min=LEAST), weight.abs().amax(0).clamp(min=LEAST)
    return sixteen_bits(inputs**alpha / weights ** (1 - alpha))


def sixteen_bits(values: Tensor) -> Tensor:
    """Values as bfloat16 stores them, in their own type: what a scheme stores beside its weights counts 16 bits."""
    return values.to(torch.bfloat16).to(values.dtype)
