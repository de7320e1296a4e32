"""GPTQ: round weights column by column, and let the columns that are left make up for it.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023
(arXiv 2210.17323), section 3.3 and algorithm 1. A layer's squared error is tr(D H D') with D the change of its weights
(out, in) and H the mean of x x' over its inputs.
"""

import torch
from torch import Tensor

from ditscope.models.emulate.formats import Format, Grid, fit, rounded, tensor_scale

BLOCK = 128  # columns whose errors are handed on together (lazy batch updates)


def squared_error(change: Tensor, hessian: Tensor) -> Tensor:
    """Mean squared error of each output (out,) where a layer's weights (out, in) change so: the diagonal of D H D'."""
    return ((change @ hessian) * change).sum(1)


def gptq(
    weight: Tensor, hessian: Tensor, kind: Format, damping: float = 0.01, act_order: bool = False, block: int = BLOCK
) -> Tensor:
    """Weights (out, in) in a format, of which each row has an error under `hessian` that is at most that of rounding.

    Algorithm 1 gives no such promise: a row that it leaves worse than rounding to nearest is rounded to nearest.
    `act_order` takes the columns by falling diagonal of H; their groups then keep the ranges of the given weights.
    """
    nearest = rounded(weight, kind)
    found = columnwise(weight, damped(hessian, damping), kind, act_order, block)
    better = squared_error(found - weight, hessian) < squared_error(nearest - weight, hessian)
    return torch.where(better[:, None], found, nearest)


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H plus `damping` times the mean of its diagonal; a channel that is always 0 gets that mean alone."""
    diagonal = hessian.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(hessian.dtype).smallest_normal)
    return hessian + torch.diag(damping * mean + torch.where(diagonal > 0, 0, mean))


def columnwise(weight: Tensor, hessian: Tensor, kind: Format, act_order: bool, block: int) -> Tensor:
    """Algorithm 1: weights (out, in) rounded column by column under a positive definite `hessian`."""
    columns = weight.shape[1]
    order = hessian.diagonal().argsort(descending=True) if act_order else torch.arange(columns, device=weight.device)
    group = kind.group or columns
    whole = tensor_scale(weight, kind)
    given = fit(weight.unflatten(1, (-1, group)), kind, whole)
    work, result = weight[:, order].clone(), torch.empty_like(weight)
    # Rows of the upper Cholesky factor of the inverse are what step 3 of section 3.3 needs of all inverses to come.
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order])), upper=True)
    size = max(block // group, 1) * group if group < columns else block  # groups end with blocks
    for start in range(0, columns, size):
        end = min(start + size, columns)
        errors = torch.empty_like(work[:, start:end])
        for i in range(start, end):
            column = int(order[i])
            if act_order or group == columns:
                grid = Grid(kind, given.scale[:, column // group], given.zero[:, column // group])
            elif i % group == 0:  # from the weights as they are now
                grid = fit(work[:, i : i + group], kind, whole)
            result[:, column] = grid.round(work[:, i : i + 1])[:, 0]
            errors[:, i - start] = (work[:, i] - result[:, column]) / upper[i, i]
            work[:, i:end] -= errors[:, i - start, None] * upper[i, i:end]
        work[:, end:] -= errors[:, : end - start] @ upper[start:end, end:]
    return result
