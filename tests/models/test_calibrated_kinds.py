"""Calibrated kinds: each formula of its paper against an independent reference in float64."""

import itertools

import pytest
import torch
from torch import nn

from ditscope.core.errors import InputError
from ditscope.models.emulate import apply
from ditscope.models.emulate.awq import awq, awq_scales
from ditscope.models.emulate.formats import FORMATS, rounded, weight_format
from ditscope.models.emulate.gptq import columnwise, damped, gptq, squared_error
from ditscope.models.emulate.inputs import measured, watched
from ditscope.models.emulate.layer import EmulatedLinear, Recipe, Solved
from ditscope.models.emulate.smoothquant import sixteen_bits, smoothing
from ditscope.models.emulate.svdquant import low_rank
from ditscope.models.quantize import apply_scheme, coverage, is_simulated, mean_bits, nominal_bytes, unsupported
from ditscope.models.settings import CALIBRATED, EMULATED, Scheme

INT3 = weight_format("int", 3, 8)
KINDS = [INT3, weight_format("int", 2, 0), *(FORMATS[name] for name in ("fp8-tensor", "mxfp4", "nvfp4"))]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(n: int, channels: int, seed: int = 1) -> torch.Tensor:
    """Inputs (n, channels) whose channels depend on each other and have unlike ranges, one of them an outlier."""
    x = drawn(n, channels, seed=seed) @ drawn(channels, channels, seed=seed + 1) / channels**0.5
    return x * torch.logspace(-1, 1, channels, dtype=torch.float64) + 0.3


def hessian_of(x: torch.Tensor) -> torch.Tensor:
    return x.mT @ x / len(x)


# GPTQ ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [weight_format("int", 3, 0), weight_format("int", 4, 4), FORMATS["fp8-row"]], ids=str)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block", [4, 128])
def test_gptq_is_the_closed_form_of_least_squares_column_by_column(kind, act_order, block):
    """What is rounded at each step is the best weight that the columns rounded so far leave: one regression per step.

    min over w_F of |(w - q) x|^2 with the columns S fixed at q: w_F = w_F + (w_S - q_S) H_SF H_FF^-1.
    """
    weight, hessian = drawn(5, 12), damped(hessian_of(correlated(60, 12)), 0.01)
    found = columnwise(weight, hessian, kind, act_order, block)
    order = hessian.diagonal().argsort(descending=True).tolist() if act_order else list(range(12))
    for place, column in enumerate(order):
        done, left = order[:place], order[place:]
        best = weight[:, left].clone()
        if done:
            best += (
                (weight[:, done] - found[:, done]) @ hessian[done][:, left] @ torch.linalg.inv(hessian[left][:, left])
            )
        group = kind.group or 12
        start = column // group * group
        if kind.group and not act_order:  # its group's range is taken when its first column comes
            if column == start:
                now = best[:, :group]
                grids = rounded_grid(now, kind)
            expected = grids.round(best[:, :1])[:, 0]
        else:
            expected = rounded_grid(weight[:, start : start + group], kind).round(best[:, :1])[:, 0]
        assert torch.allclose(found[:, column], expected, atol=1e-9)


def rounded_grid(values, kind):
    from ditscope.models.emulate.formats import fit, tensor_scale

    return fit(values, kind, tensor_scale(values, kind))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.name}{kind.bits}")
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("samples", [8, 400])
def test_no_row_of_gptq_is_worse_than_rounding_and_all_together_are_better(kind, act_order, samples):
    weight, hessian = drawn(16, 64), hessian_of(correlated(samples, 64))
    found, plain = gptq(weight, hessian, kind, act_order=act_order), rounded(weight, kind)
    error, of_plain = (squared_error(w - weight, hessian) for w in (found, plain))
    assert (error <= of_plain).all() and error.sum() < 0.9 * of_plain.sum()
    groups = found.reshape(-1, kind.group or 64)
    assert max(len(group.unique()) for group in groups) <= 2**kind.bits


def test_gptq_is_near_the_best_of_all_roundings():
    """All 2^6 choices of down or up on one grid, tried: GPTQ is nearer to the best of them than to rounding."""
    kind, gained, possible = weight_format("int", 3, 0), 0.0, 0.0
    for seed in range(12):
        weight, hessian = drawn(1, 6, seed=seed), hessian_of(correlated(40, 6, seed=seed + 50))
        grid = rounded_grid(weight, kind)
        low = ((weight / grid.scale).floor() + grid.zero).clamp(0, 7)
        choices = torch.tensor(list(itertools.product((0, 1), repeat=6)), dtype=torch.float64)
        all_roundings = ((low + choices).clamp(0, 7) - grid.zero) * grid.scale
        best = squared_error(all_roundings - weight, hessian).min()
        plain = squared_error(grid.round(weight) - weight, hessian)[0]
        found = squared_error(gptq(weight, hessian, kind, damping=1e-6, act_order=True) - weight, hessian)[0]
        gained, possible = gained + float(plain - found), possible + float(plain - best)
    assert gained > 0.5 * possible > 0


def test_gptq_of_independent_channels_is_rounding():
    weight = drawn(4, 16)
    assert torch.equal(gptq(weight, torch.eye(16, dtype=torch.float64), INT3), rounded(weight, INT3))


def test_squared_error_is_that_of_the_outputs():
    x, change = correlated(50, 16), drawn(4, 16)
    assert torch.allclose(squared_error(change, hessian_of(x)), (x @ change.mT).square().mean(0))


def test_channels_that_are_always_0_are_rounded():
    weight, x = drawn(4, 16), correlated(50, 16)
    x[:, [2, 7]] = 0
    found = columnwise(weight, damped(hessian_of(x), 0.01), FORMATS["fp8-row"], False, 128)
    assert torch.allclose(found[:, [2, 7]], rounded(weight, FORMATS["fp8-row"])[:, [2, 7]])


# SmoothQuant, AWQ, SVDQuant -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_smoothing_leaves_the_product_and_follows_equation_4(alpha):
    weight, x = drawn(6, 16), correlated(50, 16)
    x[:, 3] = 0
    factors = smoothing(x.abs().amax(0), weight, alpha)
    assert torch.allclose((x / factors) @ (weight * factors).mT, x @ weight.mT, rtol=1e-13, atol=1e-13)
    for j in (0, 5):
        formula = float(x[:, j].abs().max()) ** alpha / float(weight[:, j].abs().max()) ** (1 - alpha)
        assert float(factors[j]) == pytest.approx(formula, rel=2**-8)  # of bfloat16
    if alpha == 0.5:  # equal ranges of inputs and weights, as the paper says
        ranges = [(x / factors).abs().amax(0), (weight * factors).abs().amax(0)]
        assert torch.allclose(ranges[0][4:], ranges[1][4:], rtol=2**-6)


def test_awq_takes_the_best_of_its_grid_and_never_one_worse_than_rounding():
    weight, x = drawn(6, 16), correlated(50, 16)
    hessian, absmean = hessian_of(x), x.abs().mean(0)
    values, scales = awq(weight, absmean, hessian, INT3, grid=8)
    errors = []
    for i in range(9):  # equation 4 from the outputs themselves
        s = absmean ** (i / 8)
        s = sixteen_bits(s / (s.max() * s.min()).sqrt())
        errors.append(float(((x / s) @ rounded(weight * s, INT3).mT - x @ weight.mT).square().mean(0).sum()))
    found = float(((x / scales) @ values.mT - x @ weight.mT).square().mean(0).sum())
    assert found == pytest.approx(min(errors)) and found < errors[0]
    assert torch.equal(awq_scales(absmean, 0.0), torch.ones(16, dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 3, 8, 20])
def test_the_branch_and_the_rest_are_the_weight_and_the_branch_is_the_best_of_its_rank(rank):
    weight = drawn(8, 16)
    up, down, rest = low_rank(weight, rank)
    assert up.shape == (8, min(rank, 8)) and down.shape == (min(rank, 8), 16)
    assert torch.allclose(up @ down + rest, weight, rtol=0, atol=1e-14)
    tail = torch.linalg.svdvals(weight)[rank:].square().sum().sqrt()  # Eckart and Young
    assert float(rest.norm()) == pytest.approx(float(tail), rel=1e-3, abs=0.03)


# Layers and statistics ----------------------------------------------------------------------------------------------


def test_statistics_over_batches_are_those_of_all_inputs():
    x = correlated(60, 16)
    layer = nn.Linear(16, 4).double()
    with watched({"a": layer, "b": nn.Linear(1, 1)}, hessian=True) as seen:
        for part in (x[:10], x[10:40].reshape(2, 15, 16), x[40:]):
            layer(part)
    layer(x)  # outside: not counted
    assert seen.keys() == {"a"} and seen["a"].n == 60
    assert torch.allclose(seen["a"].hessian, hessian_of(x)) and torch.allclose(seen["a"].absmean, x.abs().mean(0))
    assert torch.equal(seen["a"].absmax, x.abs().amax(0)) and measured(x, False).hessian is None


def test_an_emulated_layer_is_its_formula():
    layer = nn.Linear(16, 6)
    x, parts = drawn(2, 5, 16).float(), [drawn(16, seed=3).abs() + 0.5, drawn(6, 2, seed=4), drawn(2, 16, seed=5)]
    solved = Solved(drawn(6, 16, seed=6), *parts)
    made = EmulatedLinear(layer, solved, FORMATS["fp8-row"])
    scaled = x.double() / parts[0].float()
    expected = rounded(scaled, FORMATS["fp8-row"]) @ solved.weight.mT + scaled @ parts[2].mT @ parts[1].mT
    assert torch.allclose(made(x).double(), expected + layer.bias.double(), rtol=1e-4, atol=1e-4)
    assert set(made.state_dict()) == {"weight", "bias", "smoothing", "up", "down"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32, bias=False))


def measure_on(model, x):
    def measure(layers, hessian):
        with watched(layers, hessian) as seen:
            model(x)
        return seen

    return measure


@pytest.mark.parametrize("kind", EMULATED)
@pytest.mark.parametrize(
    "more",
    [{"bits": 4, "group_size": 32}, {"format": "mxfp4"}, {"format": "nvfp4"}, {"bits": 8, "activations": "int8"}],
    ids=str,
)
def test_emulated_kinds_change_the_output_a_little_and_count_what_they_store(kind, more):
    scheme = Scheme(kind, rank=2, **more)
    model, x = network(), correlated(200, 64).float()
    before, promised, bits = model(x), nominal_bytes(model, scheme), mean_bits(model, scheme)
    apply_scheme(model, scheme, measure=measure_on(model, x))
    assert 0 < ((model(x) - before).norm() / before.norm()) < 0.35
    assert all(isinstance(model[i], EmulatedLinear) for i in (0, 2)) and is_simulated(network(), scheme)
    plain = nominal_bytes(network(), Scheme("nearest", **more))
    beside = {"svdquant": 64 + 64 + 2 * (64 + 64) + 2 * (64 + 32)}
    beside |= dict.fromkeys(("awq", "smoothquant"), 64 + 64)
    assert promised == plain + 2 * beside.get(kind, 0)
    assert bits == pytest.approx(8 * (promised - 64 * 4) / (64 * 64 + 64 * 32))


@pytest.mark.parametrize("kind", CALIBRATED)
def test_calibrated_kinds_beat_or_equal_rounding_on_their_own_inputs(kind):
    x = correlated(400, 64).float()
    x[:, 5] *= 30  # an outlier channel, which smoothing is for
    activations = "int8" if kind == "smoothquant" else ""

    def error(scheme):
        model = network()
        before = model[0](x)
        apply_scheme(model, scheme, measure=measure_on(model, x))
        return float((model[0](x) - before).detach().norm())

    settings = {"bits": 4 if not activations else 8, "group_size": 32, "activations": activations, "rank": 4}
    assert error(Scheme(kind, **settings)) < error(Scheme("nearest", **settings))


def test_hessians_that_do_not_fit_are_taken_in_parts_with_equal_results(monkeypatch):
    x, results, passes = correlated(100, 64).float(), [], []
    for size in (2**30, 1):
        monkeypatch.setattr(apply, "HESSIAN_BYTES", size)
        model, calls = network(), []
        measure = measure_on(model, x)
        apply_scheme(model, Scheme("gptq", bits=3), measure=lambda *a, m=measure, c=calls: c.append(1) or m(*a))
        results.append(model[2].weight)
        passes.append(len(calls))
    assert torch.equal(*results) and passes == [1, 2]


def test_what_cannot_be_solved_is_said():
    with pytest.raises(InputError, match="solved from recorded inputs; give a calibration set"):
        apply_scheme(network(), Scheme("gptq"))
    with pytest.raises(InputError, match="calibration never reaches layer `2`"):
        apply_scheme(network(), Scheme("gptq"), measure=lambda layers, hessian: {"0": measured(drawn(9, 64), True)})
    model = nn.Sequential(nn.Linear(48, 8), nn.Linear(64, 8))
    _, left = coverage(model, Scheme("nearest", format="mxfp4"))
    assert left == {"0": "with rows that group_size does not divide"}
    _, left = coverage(model, Scheme("nearest", format="fp8-row", activations="mxfp8"))
    assert left == {"0": "with rows that group_size does not divide"}
    assert "needs a model with `backend: torch`" in unsupported(Scheme("gptq"), "mlx")
    assert "needs CUDA compute capability 10.0" in unsupported(Scheme("nvfp4-dynamic"), "cpu")
    assert "bfloat16 weights" in unsupported(Scheme("mxfp8-dynamic"), "cpu", "float32")


@pytest.mark.parametrize("kind", ["mxfp8-dynamic", "mxfp4-dynamic", "nvfp4-weight-only"])
def test_torchaos_own_small_floats_run_on_a_cpu_and_equal_the_emulation(kind):
    model = network().bfloat16()
    emulated, x = network().bfloat16(), correlated(64, 64).bfloat16()
    name = kind.split("-")[0]
    same = Scheme("nearest", format=name, activations=name if "dynamic" in kind else "")
    assert nominal_bytes(model, Scheme(kind)) == nominal_bytes(model, same)
    assert is_simulated(model, Scheme(kind)) == ("mx" in kind)
    before = model(x)
    apply_scheme(model, Scheme(kind))
    apply_scheme(emulated, same)
    assert torch.allclose(model(x), emulated(x), rtol=0.02, atol=0.03 * float(before.abs().max()))


def test_a_recipe_is_a_config_that_torchao_applies():
    from torchao.quantization import FqnToConfig, quantize_

    model, recipe = network(), Recipe(lambda weight, inputs, recipe: Solved(rounded(weight, INT3)), INT3)
    quantize_(model, FqnToConfig({"2": recipe}), filter_fn=None)
    assert type(model[0]) is nn.Linear and torch.equal(
        model[2].weight, rounded(network()[2].weight.double(), INT3).float()
    )
