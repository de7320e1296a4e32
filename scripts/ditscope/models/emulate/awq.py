"""AWQ: scale the input channels that matter up before rounding, and their inputs down.

Lin et al., "AWQ: Activation-aware Weight Quantization", MLSys 2024 (arXiv 2306.00978), equations 4 and 5: the scales
are s = mean|x|^alpha, and alpha is searched for on a grid over [0, 1].
"""

from torch import Tensor

from ditscope.models.emulate.formats import Format, rounded
from ditscope.models.emulate.gptq import squared_error
from ditscope.models.emulate.smoothquant import LEAST, sixteen_bits


def awq_scales(absmean: Tensor, alpha: float) -> Tensor:
    """Equation 5: scales (in,) of the channels, with 1 in the middle of their range; 1 throughout for alpha = 0."""
    scales = absmean.clamp(min=LEAST) ** alpha
    return sixteen_bits(scales / (scales.amax() * scales.amin()).sqrt())


def awq(weight: Tensor, absmean: Tensor, hessian: Tensor, kind: Format, grid: int = 20) -> tuple[Tensor, Tensor]:
    """Equation 4: weights Q(W diag(s)) (out, in) and scales s (in,) of the least error of Q(W diag(s)) diag(s)^-1 x.

    The error is that over the calibration set (`hessian`: the mean of x x'). Alpha = 0 is rounding to nearest.
    """

    def tried(alpha: float) -> tuple[float, Tensor, Tensor]:
        scales = awq_scales(absmean, alpha)
        values = rounded(weight * scales, kind)
        return float(squared_error(values / scales - weight, hessian).sum()), values, scales

    _, values, scales = min((tried(i / grid) for i in range(grid + 1)), key=lambda found: found[0])
    return values, scales
