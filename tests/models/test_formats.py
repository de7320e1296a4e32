"""Number formats against the tables of their definitions, brute force in float64, and torchao's casts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32, f32_to_f4_unpacked
from torchao.prototype.mx_formats.mx_tensor import MXTensor, ScaleCalculationMode
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

from ditscope.core.errors import InputError
from ditscope.models.emulate.formats import (
    E2M1,
    E4M3,
    FORMATS,
    activation_format,
    rounded,
    rounded_float,
    stored_bits,
    weight_format,
)
from ditscope.models.quantizers import group_affine

FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # OCP MX specification 1.0, table 5
# Table 2: 2^(e - 7) (1 + m / 8), and m / 8 2^-6 below; code 0x7f is NaN, so that 448 is the largest.
FP8 = [m / 8 * 2.0**-6 if e == 0 else 2.0 ** (e - 7) * (1 + m / 8) for e in range(16) for m in range(8)][:-1]


def nearest(value: float, table: list[float]) -> float:
    """Brute force: the nearest value of a table by its codes, of two the one with the even code."""
    code = min(range(len(table)), key=lambda i: (abs(table[i] - abs(value)), i % 2))
    return float(np.copysign(table[code], value))


@pytest.mark.parametrize(("element", "table"), [(E2M1, FP4), (E4M3, FP8)], ids=["e2m1", "e4m3"])
def test_floats_are_the_nearest_of_their_table(element, table):
    middles = [(a + b) / 2 for a, b in pairwise(table)]  # ties
    rng = np.random.default_rng(0)
    values = [*table, *middles, *(2.0 ** rng.uniform(-12, 11, 400)), table[-1] * 1.5, 1e5]
    values = torch.tensor([*values, *(-v for v in values)], dtype=torch.float64)
    expected = torch.tensor([nearest(v, table) for v in values.tolist()], dtype=torch.float64)
    assert torch.equal(rounded_float(values, element), expected)


def test_floats_are_what_torch_and_torchao_cast_to():
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 4096)
    clamped = values.clamp(-448, 448)
    assert torch.equal(rounded_float(values, E4M3), clamped.to(torch.float8_e4m3fn).float())
    assert torch.equal(rounded_float(values, E2M1), f4_unpacked_to_f32(f32_to_f4_unpacked(values)))


def blocks(rows: int = 24, row: int = 64) -> torch.Tensor:
    """Values of blocks of very different ranges, one of them 0 throughout."""
    values = torch.randn(rows, row, generator=torch.Generator().manual_seed(1))
    values = values * torch.logspace(-3, 2, rows)[:, None]
    values[3, :32] = 0
    values[4, 0] = values[4, :32].abs().max() * 40
    return values


@pytest.mark.parametrize(
    ("name", "element"), [("mxfp8", torch.float8_e4m3fn), ("mxfp4", torch.float4_e2m1fn_x2)], ids=["mxfp8", "mxfp4"]
)
def test_microscaled_values_are_torchaos(name, element):
    values = blocks()
    theirs = MXTensor.to_mx(values, element, 32, ScaleCalculationMode.RCEIL).dequantize(torch.float32)
    assert torch.equal(rounded(values, FORMATS[name]), theirs)


def test_nvfp4_values_are_torchaos():
    values = blocks()
    whole = per_tensor_amax_to_scale(values.abs().max())
    theirs = NVFP4Tensor.to_nvfp4(values, per_tensor_scale=whole).dequantize(torch.float32)
    # torchao multiplies by a reciprocal in float32: a value at a tie may fall to the other side.
    same = torch.isclose(rounded(values, FORMATS["nvfp4"]), theirs, rtol=1e-5, atol=0)
    assert same.float().mean() > 0.999


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4", "nvfp4", "fp8-row", "fp8-tensor"])
def test_every_value_is_a_code_times_a_scale_that_the_format_can_hold(name):
    """By brute force in float64: a block's scales are tried, all that its scale's format can hold."""
    values, kind = blocks(6).double(), FORMATS[name]
    table = torch.tensor(FP4 if kind.element is E2M1 else FP8, dtype=torch.float64)
    made = rounded(values, kind)
    largest = values.abs().amax()
    for block, own in zip(made.reshape(-1, kind.group or 64), values.reshape(-1, kind.group or 64), strict=True):
        top = own.abs().max()
        scales = {
            "mxfp8": 2.0 ** torch.arange(-40, 20.0).double(),
            "mxfp4": 2.0 ** torch.arange(-40, 20.0).double(),
            "nvfp4": torch.tensor(FP8, dtype=torch.float64)[8:] * largest / (448 * 6),
            "fp8-row": top[None] / 448,
            "fp8-tensor": largest[None] / 448,
        }[name].clamp(min=1e-300)
        codes = block.abs() / scales[:, None]
        off = (codes[..., None] - table).abs().amin(-1).amax(-1)
        assert off.min() < 1e-9
        if top / 448 > largest / 448 / 6 / 2**6:  # else NVFP4's scale is the least that it has
            assert block.abs().max() >= top * (0.79 if kind.element is E2M1 else 0.93)  # 5 of 6 becomes 4, a tie


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [0, 16])
def test_integers_are_those_of_bit_plans(bits, group):
    values = blocks().double()
    made = rounded(values, weight_format("int", bits, group))
    assert torch.allclose(made.float(), group_affine(values.float(), bits, group), rtol=1e-4, atol=1e-6)
    sizes = {len(g.unique()) for g in made.reshape(-1, group or 64)}
    assert max(sizes) <= 2**bits


def test_activations_are_symmetric_and_by_token():
    values = blocks().double()
    made = rounded(values, activation_format("int8", 16))
    step = values.abs().amax(1, keepdim=True) / 127
    assert ((made - values).abs() <= step / 2 * (1 + 1e-12)).all()
    assert torch.equal(rounded(-values, activation_format("int8", 0)), -made)
    four = rounded(values, activation_format("int4", 16)).reshape(-1, 16)
    assert max(len(group.unique()) for group in four) <= 15 and activation_format("", 16) is None


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (weight_format("int", 4, 32), 8 * 64 * 4 + 16 * (16 + 4)),
        (weight_format("int", 3, 0), 8 * 64 * 3 + 8 * (16 + 3)),
        (FORMATS["fp8-row"], 8 * 64 * 8 + 8 * 16),
        (FORMATS["fp8-tensor"], 8 * 64 * 8 + 16),
        (FORMATS["mxfp8"], 8 * 64 * 8 + 16 * 8),
        (FORMATS["mxfp4"], 8 * 64 * 4 + 16 * 8),
        (FORMATS["nvfp4"], 8 * 64 * 4 + 32 * 8 + 32),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_bits_by_hand(kind, bits):
    assert stored_bits(kind, (8, 64)) == bits


def test_formats_that_are_none_are_refused():
    for make, message in (
        (lambda: weight_format("fp6", 4, 32), "format: `fp6` is none"),
        (lambda: weight_format("int", 9, 32), "bits: 9; 1 to 8"),
        (lambda: activation_format("int3", 0), "activations: `int3` is none"),
    ):
        with pytest.raises(InputError, match=message):
            make()
