"""Fast sensitivity against exact Jacobians in float64, adaptive sensitivity against exact plans, rank agreement."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from ditscope.calibration_set import Reference
from ditscope.plan import Choices, nominal_bytes, solve
from ditscope.quantizers import group_affine
from ditscope.sensitivity_adaptive import next_samples, relaxed_plan, sampling_order
from ditscope.sensitivity_exact import Layer
from ditscope.sensitivity_fast import estimate_layers, probe, ratios, weight_changes
from ditscope.sensitivity_table import BUCKETS, rank_agreement, summary
from ditscope.settings import Sensitivity

SETTINGS = Sensitivity(bits=[2, 4], group_size=0)


class Net(nn.Module):
    """A convolution, a linear layer over tokens that runs twice, and one over a pooled vector, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.twice, self.pooled, self.idle = (
            nn.Conv2d(2, 3, 2),
            nn.Linear(3, 3),
            nn.Linear(3, 4),
            nn.Linear(2, 2),
        )
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).mT
        tokens = torch.tanh(self.twice(torch.tanh(self.twice(tokens))))
        return self.pooled(tokens.mean(1)) ** 2


@dataclass(frozen=True)
class Batch:
    x: Tensor
    references: tuple[Reference, ...]
    bucket: str = "early"

    def velocity(self, model) -> Tensor:
        return model.pipe.transformer(self.x)


@pytest.fixture
def model():
    return SimpleNamespace(name="net", pipe=SimpleNamespace(transformer=Net()))


def batch_of(count: int) -> Batch:
    x = torch.randn(count, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Batch(x, tuple(Reference("f", None, i, 0, 1.0) for i in range(count)))


def jacobian_products(net: Net, x: Tensor, layer: nn.Module, change: Tensor) -> Tensor:
    """J dW of each sample by forward-mode differentiation, (samples, outputs)."""
    name = next(n for n, m in net.named_modules() if m is layer) + ".weight"

    def run(weight: Tensor) -> Tensor:
        return torch.func.functional_call(net, {name: weight}, (x,))

    return torch.func.jvp(run, (layer.weight.detach(),), (change,))[1]


def changes_of(layer: nn.Module) -> list[Tensor]:
    return [group_affine(layer.weight.data, bits, 0) - layer.weight.data for bits in SETTINGS.bits]


def test_one_probe_is_the_inner_product_with_the_jacobian(model):
    net, batch = model.pipe.transformer.requires_grad_(False), batch_of(5)
    layers = [net.conv, net.twice, net.pooled]
    velocity, products = probe(
        model, batch, [*layers, net.idle], weight_changes(SETTINGS), torch.Generator().manual_seed(7)
    )
    signs = torch.randint(0, 2, velocity.shape, generator=torch.Generator().manual_seed(7)) * 2.0 - 1
    for layer in layers:
        for column, change in enumerate(changes_of(layer)):
            expected = (signs * jacobian_products(net, batch.x, layer, change)).sum(1)
            torch.testing.assert_close(products[layer][:, column], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(products[net.idle], torch.zeros(5, 2, dtype=torch.float64))


def test_mean_over_probes_is_the_squared_norm(model):
    net, batch = model.pipe.transformer, batch_of(4)
    layers = [Layer(name, getattr(net, name), "mlp", 0) for name in ("conv", "twice", "pooled")]
    buckets = dict.fromkeys(batch.references, "early")
    settings = Sensitivity(bits=[2, 4], group_size=0, probes=4 * 1500)
    rows = pl.DataFrame(estimate_layers(model, layers, [batch], buckets, settings))
    assert len(rows) == 3 * 2 * 4 * 1500
    reference = net(batch.x).detach()
    for layer in layers:
        for bits, change in zip(settings.bits, changes_of(layer.module), strict=True):
            error = jacobian_products(net, batch.x, layer.module, change).square().sum(1)
            expected = (error / reference.square().sum(1)).mean().item()
            scores = rows.filter(layer=layer.name, bits=bits)["relative_l2"].to_numpy()
            assert abs(scores.mean() - expected) < 5 * scores.std() / np.sqrt(len(scores))
            assert scores.mean() == pytest.approx(expected, rel=0.15)


def test_summary_of_ratios_gives_the_metrics_formulas():
    velocity = torch.randn(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    error = 0.01 * torch.randn(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (row,) = ratios(velocity, error.square().sum(1))
    rmse = error.square().mean().sqrt().item()
    expected = {
        "psnr_db": 20 * np.log10((velocity.abs().max().item() + 1e-5) / (rmse + 1e-10)),
        "sqnr_db": 20 * np.log10(velocity.square().mean().sqrt().item() / rmse),
        "relative_l2": (error.norm() / velocity.norm()).item(),
    }
    for metric, value in expected.items():
        found = summary(np.array([row[metric]] * 3), metric, squared=True)
        assert found["value"] == pytest.approx(value, rel=1e-6)
        assert found["value_low"] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("metric", ["relative_l2", "sqnr_db"])
def test_interval_and_spread_of_ratios(metric):
    """Over many data sets the spread of the estimate is what value_std / sqrt(n) says, and the ends are in order."""
    rng = np.random.default_rng(0)
    found = [summary(rng.chisquare(1, 200), metric, squared=True) for _ in range(200)]
    spread = np.std([f["value"] for f in found])
    assert np.mean([f["value_std"] for f in found]) / np.sqrt(200) == pytest.approx(spread, rel=0.2)
    assert all(f["value_low"] < f["value"] < f["value_high"] for f in found)


# Adaptive ------------------------------------------------------------------------------------------------------------


def grid(images: int, steps: int) -> dict[Reference, str]:
    references = [Reference("f", None, i, s, 1 - s / steps) for i in range(images) for s in range(steps)]
    return {r: BUCKETS[r.step_index * 3 // steps] for r in references}


def test_every_beginning_of_the_order_is_spread_over_steps_and_images():
    buckets = grid(4, 9)
    order = sampling_order(buckets, "mid")
    assert len(order) == len(set(order)) == 12
    assert [r.step_index for r in order[:3]] == [3, 4, 5]
    assert len({r.image for r in order[:3]}) == 3


def test_relaxed_plan_is_the_integer_program_s_on_its_frontier():
    rng = np.random.default_rng(0)
    cost = 10.0 ** rng.uniform(-6, 0, (30, 1)) * 4.0 ** -np.array([2, 4, 8])
    size = np.array([[nominal_bytes(1024, b, 32) for b in (2, 4, 8)]] * 30)
    plan = relaxed_plan(cost, size, int(size[:, 1].sum()))
    total = int(size[np.arange(30), plan].sum())
    assert total <= size[:, 1].sum()
    choices = Choices([str(i) for i in range(30)], [2, 4, 8], cost, size, np.full(30, 1024))
    assert choices.totals(solve(choices, total))["predicted"] == pytest.approx(choices.totals(plan)["predicted"])


def layers_of(count: int) -> list[dict]:
    return [
        {"layer": f"l{i}", "kind": "mlp", "depth": i, "module": "linear", "shared_weights": 32, "parameters": 1024}
        for i in range(count)
    ]


def measure(names, chosen, levels: dict[str, float], noise: dict[str, float]) -> pl.DataFrame:
    """Made-up scores: a layer's level, halved by each bit, with lognormal noise that its name and sample fix."""
    rows = []
    for name in sorted(names):
        for r in chosen:
            seed = [int(name[1:]), r.image, r.step_index]
            factor = np.exp(noise[name] * np.random.default_rng(seed).normal())
            bucket = BUCKETS[r.step_index * 3 // 9]
            rows += [
                {"layer": name, "bits": b, "bucket": bucket, "image": r.image, "step_index": r.step_index,
                 "relative_l2": levels[name] * factor * 0.5**b}
                for b in (2, 4, 8)
            ]  # fmt: skip
    return pl.DataFrame(rows)


def test_certain_layers_stop_and_doubtful_ones_go_on():
    buckets, layers = grid(8, 9), layers_of(12)
    settings = Sensitivity(bits=[2, 4, 8])
    # Far apart and nearly free of noise, but for two of like level and much noise that compete for the same bits.
    levels = {f"l{i}": 10.0 ** -(i % 6) for i in range(12)} | {"l4": 3e-2, "l5": 3.1e-2}
    noise = {f"l{i}": 0.001 for i in range(12)} | {"l4": 0.8, "l5": 0.8}
    measured, counts = None, []
    while True:
        names, chosen = next_samples(measured, layers, buckets, settings)
        if not names:
            break
        counts.append((set(names), len(chosen)))
        new = measure(names, chosen, levels, noise)
        measured = new if measured is None else pl.concat([measured, new])
    assert counts[0] == ({f"l{i}" for i in range(12)}, 9)
    assert len(counts) > 1 and counts[1][0] < counts[0][0]
    assert "l4" in counts[1][0] or "l5" in counts[1][0]
    assert sum(len(names) * n for names, n in counts) < 12 * len(buckets)
    keys = measured.select("layer", "bits", "image", "step_index")
    assert keys.is_unique().all()  # no sample is measured twice


def test_agreement_is_scipy_s_spearman():
    rng = np.random.default_rng(0)
    keys = {"model": "m", "bucket": "early", "bits": 4, "metric": "relative_l2"}
    a, b = rng.normal(size=20), rng.normal(size=20)
    tables = [pl.DataFrame([keys | {"layer": f"l{i}", "value": v} for i, v in enumerate(x)]) for x in (a, b)]
    (row,) = rank_agreement(*tables).to_dicts()
    assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert row["layers"] == 20
