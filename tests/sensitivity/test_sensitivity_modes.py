"""Fast sensitivity and effects on images against Jacobians in float64, agreement."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from ditscope.calibrate import stage as calibrate_stage
from ditscope.calibrate.files import Reference, load_calibration
from ditscope.calibrate.load import batches
from ditscope.calibrate.settings import Calibrate
from ditscope.models.quantizers import group_affine
from ditscope.models.sampling import Observer, pictures, sample
from ditscope.sensitivity import image as image_stage
from ditscope.sensitivity.exact import Layer, network_of
from ditscope.sensitivity.fast import estimate_layers, probe, ratios, weight_changes
from ditscope.sensitivity.image import image_effects, probe_image
from ditscope.sensitivity.scores import assign_buckets, rank_agreement, summary, tabulate
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.tables import BUCKETS, WHOLE
from tiny_models import ENTRIES, tiny_generator

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
    return SimpleNamespace(
        name="net", pipe=SimpleNamespace(transformer=Net()), entry=SimpleNamespace(backend="torch", family="flux")
    )


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
        model, batch, [*layers, net.idle], weight_changes(model, SETTINGS), torch.Generator().manual_seed(7)
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
        cell = summary(np.array([row[metric]] * 8), range(8), metric, squared=True)
        assert cell["value"] == pytest.approx(value, rel=1e-6)
        assert cell["value_low"] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("metric", ["relative_l2", "sqnr_db"])
def test_interval_and_spread_of_ratios(metric):
    """Over many data sets the spread of the estimate is what value_std / sqrt(n) says, and the ends are in order."""
    rng = np.random.default_rng(0)
    cells = [summary(rng.chisquare(1, 200), range(200), metric, squared=True) for _ in range(200)]
    spread = np.std([f["value"] for f in cells])
    assert np.mean([f["value_std"] for f in cells]) / np.sqrt(200) == pytest.approx(spread, rel=0.2)
    assert all(f["value_low"] < f["value"] < f["value_high"] for f in cells)


# Agreement -----------------------------------------------------------------------------------------------------------


def test_agreement_is_scipy_s_spearman():
    rng = np.random.default_rng(0)
    keys = {"model": "m", "bucket": "early", "bits": 4, "metric": "relative_l2"}
    a, b = rng.normal(size=20), rng.normal(size=20)
    tables = [pl.DataFrame([keys | {"layer": f"l{i}", "value": v} for i, v in enumerate(x)]) for x in (a, b)]
    (row,) = rank_agreement(*tables).to_dicts()
    assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert row["layers"] == 20


# Effect on images ----------------------------------------------------------------------------------------------------


class Euler(nn.Module):
    """A velocity with a layer that every step uses, and one whose output is multiplied by zero, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.idle = nn.Linear(3, 5), nn.Linear(5, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        tokens = x.movedim(1, -1)
        out = self.outer(torch.tanh(self.inner(tokens) * (1 + sigma))) + 0 * self.idle(tokens)
        return out.movedim(-1, 1)


@dataclass(frozen=True)
class EulerBatch:
    x: Tensor
    sigma: Tensor
    bucket: str

    def at(self, x: Tensor) -> "EulerBatch":
        return replace(self, x=x)

    def velocity(self, model) -> Tensor:
        return model.pipe.transformer(self.x, self.sigma)


SIGMAS = (1.0, 0.9, 0.5, 0.2, 0.0)
OF_STEP = ("early", "early", "mid", "late")


def drawn(net: Euler, x: Tensor) -> Tensor:
    """A nonlinear decoder: one value for each two of the latents."""
    return torch.sin(2 * x.flatten(1).unflatten(1, (-1, 2)).prod(2))


def trajectory(net: Euler, x: Tensor, swapped: dict[int, dict[str, Tensor]]) -> list[Tensor]:
    """States of an Euler run whose step i uses the weights `swapped[i]`."""
    states = [x]
    for i, sigma in enumerate(SIGMAS[:-1]):
        weights = swapped.get(i, {})
        v = torch.func.functional_call(net, weights, (states[-1], torch.tensor(sigma, dtype=torch.float64)))
        states.append(states[-1] + (SIGMAS[i + 1] - sigma) * v)
    return states


def test_image_effect_is_the_derivative_of_the_whole_sampler(monkeypatch):
    """Against forward-mode differentiation through all steps and the decoder, bucket by bucket."""
    net = Euler().requires_grad_(False)
    decoded = []
    monkeypatch.setattr(image_stage, "pictures", lambda model, x: decoded.append(len(x)) or drawn(net, x))
    model = SimpleNamespace(
        name="net", pipe=SimpleNamespace(transformer=net), entry=SimpleNamespace(backend="torch", family="flux")
    )
    x = torch.randn(3, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    states = trajectory(net, x, {})
    steps = [EulerBatch(states[i], torch.tensor(SIGMAS[i], dtype=torch.float64), b) for i, b in enumerate(OF_STEP)]
    modules = [net.inner, net.outer, net.idle]
    probed = probe_image(model, steps, modules, weight_changes(model, SETTINGS), torch.Generator().manual_seed(7))
    signs = torch.randint(0, 2, (3, 6), generator=torch.Generator().manual_seed(7)) * 2.0 - 1
    assert probed.keys() == {(bucket, module) for bucket in BUCKETS for module in modules}
    assert decoded == [1, 1, 1], "the memory of a backward pass through the decoder is that of one image"
    for (bucket, module), effects in probed.items():
        name = next(n for n, m in net.named_modules() if m is module) + ".weight"
        of_bucket = [i for i, b in enumerate(OF_STEP) if b == bucket]

        def run(weight, name=name, of_bucket=of_bucket):
            return drawn(net, trajectory(net, x, {i: {name: weight} for i in of_bucket})[-1])

        for column, change in enumerate(changes_of(module)):
            moved = torch.func.jvp(run, (module.weight.detach(),), (change,))[1]
            expected = (signs * moved).sum(1) / np.sqrt(6)
            torch.testing.assert_close(effects[:, column], expected, rtol=1e-9, atol=1e-12)
    assert all(probed[bucket, net.idle].abs().max() == 0 for bucket in BUCKETS)


@pytest.mark.parametrize("gradient_batch", [1, 20])  # images one by one; 10 probes of both together
def test_image_effects_estimate_the_mean_square_change(tmp_path, monkeypatch, gradient_batch):
    """A shipped family: sampled with a slightly changed layer, images move by what the table says."""
    model = tiny_generator("sd3")
    monkeypatch.setattr(calibrate_stage, "load_generator", lambda name, entry: model)
    (tmp_path / "p.csv").write_text("prompt\na\nb\n")
    made = Calibrate(num_images=2, num_steps=3, cfg_weight=3.0, statistics="")
    calibrate_stage.calibrate("tiny", ENTRIES["sd3"], tmp_path / "p.csv", tmp_path / "set", made)
    calibration = load_calibration(tmp_path / "set")
    buckets = assign_buckets(calibration, "thirds", tmp_path)
    network = network_of(model, next(batches(model, calibration, buckets, 1)))
    layers = [layer for layer in network.layers if layer.name in ("proj_out", "transformer_blocks.0.ff.net.2")]
    settings = Sensitivity(bits=[3], group_size=0, probes=600, gradient_batch=gradient_batch)
    rows = pl.DataFrame(image_effects(model, layers, calibration, buckets, settings))
    assert len(rows) == 2 * 4 * 600
    described = [layer.described(settings) for layer in layers]
    constants = {"model": "tiny", "backend": "torch", "quantizer": "group", "group_size": 0, "mode": "fast"}
    table = tabulate(rows, described, constants, ["image_rms"])
    asked = ["a", "b"], ["", ""], [0, 1]

    def finished() -> Tensor:
        return pictures(model, sample(model, *asked, steps=3, guidance=3.0)).double()

    class Swap(Observer):
        """Puts a layer's changed weight in for the steps of one bucket."""

        def __init__(self, layer, steps):
            self.layer, self.steps, self.own = layer, steps, layer.module.weight.data

        def before(self, index, x):
            changed = group_affine(self.own, 3, 0)
            self.layer.module.weight.data = changed if index in self.steps else self.own

        def stop(self):
            self.layer.module.weight.data = self.own

    with torch.no_grad():
        reference = finished()
        for layer in layers:
            for steps, bucket in (([0], "early"), ([1], "mid"), ([2], "late"), ([0, 1, 2], WHOLE)):
                latents = sample(model, *asked, [Swap(layer, steps)], steps=3, guidance=3.0)
                moved = (pictures(model, latents).double() - reference).square().mean().sqrt().item()
                (row,) = table.filter(layer=layer.name, bucket=bucket).to_dicts()
                assert row["value"] == pytest.approx(moved, rel=0.15)
                assert (row["value_low"], row["n_samples"], row["n_images"]) == (None, 600, 2)
