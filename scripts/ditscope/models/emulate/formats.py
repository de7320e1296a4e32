"""Number formats as pure functions: which values a tensor can take, rounded in ordinary floating point on any device.

An element is an integer or a small float; elements that lie next to each other in a row share a scale, and a tensor may
have one of its own besides. OCP Microscaling Formats (MX) specification 1.0, sections 5 and 6; NVFP4: elements E2M1,
blocks of 16 with a scale in E4M3, and one float32 scale of the tensor (NVIDIA, "Introducing NVFP4", 2025). The scale
of an MX block is rounded up (Mishra et al., "Recipes for Pre-training LLMs with MXFP8", 2025, arXiv 2506.08027), as
torchao does: section 6.3 leaves the rounding open, and its example, down, saturates a block's largest element.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.models.packed import SCALE_BITS
from ditscope.models.settings import ACTIVATION_FORMATS, WEIGHT_FORMATS


@dataclass(frozen=True)
class Float:
    """A float format by its bits: the largest value `top`, and subnormals below 2^least."""

    mantissa: int
    least: int  # exponent of the smallest normal number
    top: float


E4M3 = Float(3, -6, 448.0)  # OCP FP8, section 5.3.1: no infinity
E2M1 = Float(1, 0, 6.0)  # OCP FP4, section 5.3.3: 0, 0.5, 1, 1.5, 2, 3, 4, 6
E8M0 = (-127, 127)  # exponents of a shared scale, section 5.4


@dataclass(frozen=True)
class Format:
    """How the numbers of a tensor are stored."""

    name: str
    bits: int  # of an element
    group: int  # neighbours in a row that share a scale; 0: the whole row
    element: Float | None = None  # None: integers
    scale: str = "real"  # of a group: real, e8m0 (a power of two), e4m3 (beside one of the tensor), tensor (that alone)
    symmetric: bool = True  # integers around zero; else with a zero point per group

    @property
    def group_bits(self) -> int:
        """Bits that a group adds: its scale, and its zero point."""
        scale = {"real": SCALE_BITS, "tensor": 0}.get(self.scale, 8)
        return scale + (0 if self.symmetric else self.bits)

    @property
    def tensor_bits(self) -> int:
        """Bits that the tensor's own scale takes."""
        return {"tensor": SCALE_BITS, "e4m3": 32}.get(self.scale, 0)


@dataclass(frozen=True)
class Grid:
    """The values that groups can take; `scale` and `zero` broadcast over their elements."""

    format: Format
    scale: Tensor
    zero: Tensor

    def round(self, values: Tensor) -> Tensor:
        """The nearest of these values; of two that are equally near, the even one. Beyond the range: its end."""
        codes = values / self.scale
        if self.format.element:
            return rounded_float(codes, self.format.element) * self.scale
        low, high = integers(self.format)
        return ((codes.round() + self.zero).clamp(low, high) - self.zero) * self.scale


def integers(kind: Format) -> tuple[int, int]:
    """The least and the largest code of integers: unsigned beside a zero point."""
    top = 2 ** (kind.bits - 1) - 1
    return (-top, top) if kind.symmetric else (0, 2**kind.bits - 1)


def rounded_float(values: Tensor, element: Float) -> Tensor:
    """Nearest floats of few bits, ties to even, saturating at the largest (MX specification, section 5.3)."""
    _, exponent = torch.frexp(values)  # |value| in [2^(exponent - 1), 2^exponent)
    step = torch.ldexp(torch.ones_like(values), (exponent - 1).clamp(min=element.least) - element.mantissa)
    return ((values / step).round() * step).clamp(-element.top, element.top)


def tensor_scale(values: Tensor, kind: Format) -> Tensor:
    """The scale that a whole tensor shares, a scalar; 1 where its format has none."""
    tiny = torch.finfo(values.dtype).smallest_normal
    largest = values.abs().amax().clamp(min=tiny)
    if kind.scale == "tensor":
        return largest / top_of(kind)
    return largest / (E4M3.top * top_of(kind)) if kind.scale == "e4m3" else torch.ones_like(largest)


def top_of(kind: Format) -> float:
    """The largest code of a format around zero."""
    return kind.element.top if kind.element else integers(kind)[1]


def fit(groups: Tensor, kind: Format, whole: Tensor) -> Grid:
    """The grid of groups (..., elements) from their own range; `whole` is the `tensor_scale` of all they belong to."""
    tiny = torch.finfo(groups.dtype).smallest_normal
    largest = groups.abs().amax(-1, keepdim=True)
    none = torch.zeros_like(largest)
    if kind.scale == "tensor":
        return Grid(kind, whole.expand_as(largest), none)
    if kind.scale == "e8m0":  # the smallest power of two under which nothing saturates
        part, exponent = torch.frexp(largest / top_of(kind))
        exponent = torch.where(part == 0.5, exponent - 1, exponent).clamp(*E8M0)
        return Grid(kind, torch.ldexp(torch.ones_like(largest), exponent), none)
    if kind.scale == "e4m3":
        scale = (largest / top_of(kind) / whole).clamp(2.0**E4M3.least, E4M3.top)
        return Grid(kind, rounded_float(scale, E4M3) * whole, none)
    if kind.symmetric:
        return Grid(kind, (largest / top_of(kind)).clamp(min=tiny), none)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    codes = integers(kind)[1]
    scale = ((high - low) / codes).clamp(min=tiny)
    return Grid(kind, scale, (-low / scale).round().clamp(0, codes))


def rounded(values: Tensor, kind: Format) -> Tensor:
    """Round a tensor (..., row) to nearest in a format, each group by its own range."""
    groups = values.unflatten(-1, (-1, kind.group or values.shape[-1]))
    return fit(groups, kind, tensor_scale(values, kind)).round(groups).flatten(-2)


def stored_bits(kind: Format, shape: Sequence[int]) -> int:
    """Bits of a matrix (rows, row) in a format, its scales and zero points included."""
    rows, row = shape
    return rows * row * kind.bits + rows * (row // (kind.group or row)) * kind.group_bits + kind.tensor_bits


FORMATS = {
    "int": Format("int", 8, 0),
    "fp8-row": Format("fp8-row", 8, 0, E4M3),
    "fp8-tensor": Format("fp8-tensor", 8, 0, E4M3, "tensor"),
    "mxfp8": Format("mxfp8", 8, 32, E4M3, "e8m0"),
    "mxfp4": Format("mxfp4", 4, 32, E2M1, "e8m0"),
    "nvfp4": Format("nvfp4", 4, 16, E2M1, "e4m3"),
}


def weight_format(name: str, bits: int, group: int) -> Format:
    """A format of weights by name; `int` has `bits` and a zero point per `group` weights (0: per row)."""
    if name not in WEIGHT_FORMATS:
        raise InputError(f"schemes: format: `{name}` is none; valid: {', '.join(WEIGHT_FORMATS)}")
    if name != "int":
        return FORMATS[name]
    if not 1 <= bits <= 8:
        raise InputError(f"schemes: format: `int` with bits: {bits}; 1 to 8 are possible")
    return replace(FORMATS["int"], bits=bits, group=group, symmetric=False)


def activation_format(name: str, group: int) -> Format | None:
    """A format of activations by name, integers around zero; None for full precision. int4 has groups as weights."""
    if name not in ACTIVATION_FORMATS:
        raise InputError(
            f"schemes: activations: `{name}` is none; valid: {', '.join(filter(None, ACTIVATION_FORMATS))}"
        )
    if not name.startswith("int"):
        return FORMATS[name] if name else None
    bits = int(name.removeprefix("int"))
    return replace(FORMATS["int"], name=name, bits=bits, group=group if bits < 8 else 0)
