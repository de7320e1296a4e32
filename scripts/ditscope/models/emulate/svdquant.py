"""SVDQuant: a low-rank branch in 16 bits takes what is hard to quantize, 4 bits the rest.

Li et al., "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models", ICLR 2025
(arXiv 2411.05007), section 4.2: after smoothing, W = L1 L2 + R by the singular value decomposition (equations 5 and 6).
"""

import torch
from torch import Tensor

from ditscope.models.emulate.smoothquant import sixteen_bits


def low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors up (out, rank) and down (rank, in), both in 16 bits, and the residual: weight = up @ down + residual.

    Of all matrices of this rank, up @ down is nearest to the weight in the Frobenius norm, but for the 16 bits.
    """
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    up, down = sixteen_bits(u[:, :rank] * root), sixteen_bits(root[:, None] * v[:rank])
    return up, down, weight - up @ down
