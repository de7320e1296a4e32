"""Calibration and sensitivity of any transformer: recorded calls run again, layers scored as by the plain loop."""

import json
from dataclasses import replace

import polars as pl
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from any_pipelines import PIPELINES, SLOWER, save_tiny, tiny_generator
from ditscope.calibrate.call_recorder import CallRecorder
from ditscope.calibrate.files import Reference, load_calibration, validate_calibration
from ditscope.calibrate.load import CallBatch
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.models import guided
from ditscope.models.bit_plan import load_plan, to_fqn_config
from ditscope.models.call_files import about_calls, read_calls, write_calls
from ditscope.models.quantizers import QUANTIZERS
from ditscope.models.sampling import Observer, pictures, sample
from ditscope.models.settings import Model, Scheme
from ditscope.plan.settings import Budget, Plan
from ditscope.plan.stage import plan
from ditscope.sensitivity import on_calls
from ditscope.sensitivity.exact import scores
from ditscope.sensitivity.fast import estimate_layers, random_signs, weight_changes
from ditscope.sensitivity.formats import sensitivity_formats
from ditscope.sensitivity.image import probe_image
from ditscope.sensitivity.on_calls import collected, network_of, no_image_effects, score_layers
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.stage import sensitivity

FEW = ("flux2-klein", "z-image", "pixart-sigma", "wan")
CALLED = [name if name in FEW else pytest.param(name, marks=SLOWER) for name in PIPELINES if name != "wan22"]
IMAGE = {"image_id": 7, "prompt_id": "p"}
RUN = ["a red ring"], ["dull"], [3]
SETTINGS = Sensitivity(bits=[3, 8], group_size=0)


class Outputs(Observer):
    """What the transformer put out, and the steps."""

    def __init__(self):
        self.outputs, self.steps = [], []

    def answered(self, call, output):
        self.outputs.append((call.index, output))

    def after(self, step):
        self.steps.append(step)


def batch_of(path):
    """The sample of a file."""
    about, calls, tensors = read_calls(path)
    reference = Reference(path, None, about["image_id"], about["step_index"], about["sigma"])
    return CallBatch(
        (reference,), "early", tensors["x"], tuple(calls), about["guided"], about["timestep"], about["guidance"]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLED)
@torch.no_grad()
def test_replayed_calls_are_the_recorded_ones(name, dtype, tmp_path):
    model, seen = tiny_generator(name, dtype), Outputs()
    sample(model, *RUN, [CallRecorder(tmp_path, IMAGE), seen])
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == [f"00007_{i:03d}.safetensors" for i in range(3)]
    for file, step in zip(files, seen.steps, strict=True):
        batch = batch_of(file)
        outputs = [output for index, output in seen.outputs if index == step.index]
        assert torch.equal(batch.x, step.x)
        for number, output in enumerate(outputs):
            again = batch.output(model, number)
            pairs = zip(guided.halves(again, step.velocity), guided.halves(output, step.velocity), strict=True)
            for a, b in pairs:  # arguments lie in memory otherwise, which moves the last bits of a matrix product
                torch.testing.assert_close(a, b, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-5)
        if batch.guided["kind"] == "apart":
            assert name == "hunyuan-image"
            continue
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        error = (batch.velocity(model).float() - step.velocity.float()).norm() / step.velocity.float().norm()
        assert error < tolerance


@pytest.mark.parametrize("name", CALLED)
@torch.no_grad()
def test_scores_are_those_of_the_plain_loop(name, tmp_path):
    """Three layers of each depth: quantize one, run every call of the step, guide, compare."""
    model = tiny_generator(name)
    sample(model, *RUN, [CallRecorder(tmp_path, IMAGE)], steps=2)
    batch = batch_of(tmp_path / "00007_001.safetensors")
    network = network_of(model, batch)
    assert {layer.depth for layer in network.layers} >= set(range(len(network.blocks)))
    reference = batch.velocity(model)
    for depth in network.depths():
        chosen = network.at(depth)[:: max(1, len(network.at(depth)) // 3)][:3]
        rows = {(r["layer"], r["bits"]): r for r in score_layers(network, depth, [batch], SETTINGS)}
        for layer in chosen:
            own = layer.module.weight.data
            for bits in SETTINGS.bits:
                layer.module.weight.data = QUANTIZERS["group"](own, bits, 0)
                (expected,) = scores(reference, batch.velocity(model))
                layer.module.weight.data = own
                found = rows[layer.name, bits]["relative_l2"]
                assert found == pytest.approx(expected["relative_l2"], rel=1e-3, abs=1e-6), (layer.name, bits)


@pytest.mark.parametrize("name", CALLED)
def test_one_probe_is_the_inner_product_with_the_jacobian(name, tmp_path):
    """<u, J dW> by a backward pass is the derivative of <u, prediction> along dW, by differences in float64."""
    model = tiny_generator(name)
    sample(model, *RUN, [CallRecorder(tmp_path, IMAGE)], steps=2)
    batch = batch_of(tmp_path / "00007_000.safetensors")
    network = network_of(model, batch)
    last = network.at(len(network.blocks) - 1)
    layer = next((layer for layer in last if "to_v" in layer.name), last[-1])
    changes = weight_changes(model, SETTINGS)
    with collected(model, [layer.module], changes, 1) as products, torch.enable_grad():
        velocity = batch.velocity(model)
        signs = torch.ones_like(velocity)
        velocity.backward(signs)
    own, small = layer.module.weight.data, 3e-2
    moved = []
    with torch.no_grad():
        for change in changes(layer.module):
            sides = []
            for side in (small, -small):
                layer.module.weight.data = own + side * change
                sides.append(batch.velocity(model).double().sum())
            moved.append(float((sides[0] - sides[1]) / (2 * small)))
        layer.module.weight.data = own
    scale = max(map(abs, moved)) + 1e-3
    for ours, expected in zip(products[layer.module][0].tolist(), moved, strict=True):
        assert ours == pytest.approx(expected, abs=0.03 * scale)
    rows = estimate_layers(
        model, network.layers, [batch], {batch.references[0]: "early"}, Sensitivity(bits=[4], probes=1)
    )
    assert len(rows) == len(network.layers) and all(r["relative_l2"] >= 0 for r in rows)


EULER = [
    name if name in FEW else pytest.param(name, marks=SLOWER)
    for name, about in PIPELINES.items()
    if name not in ("wan", "wan22", "pixart-sigma", "cogvideox", "hunyuan-image")
]


@pytest.mark.parametrize("name", EULER)
def test_the_effect_on_images_is_the_derivative_of_the_whole_sampler(name, tmp_path):
    """<u, change of the picture> by going back through all steps, against differences of whole sampling runs."""
    model = tiny_generator(name)
    sample(model, *RUN, [CallRecorder(tmp_path, IMAGE)])
    steps = [batch_of(tmp_path / f"00007_{i:03d}.safetensors") for i in range(3)]
    assert no_image_effects(model) == ""
    network = network_of(model, steps[0])
    layer = network.at(len(network.blocks) - 1)[-1]
    change = weight_changes(model, SETTINGS)(layer.module)[1]
    probed = probe_image(
        model, steps, [layer.module], lambda module: [change], torch.Generator().manual_seed(7)
    )["early", layer.module]  # fmt: skip
    own, small, drawn = layer.module.weight.data, 0.3, []
    for side in (small, -small):
        layer.module.weight.data = own + side * change
        drawn.append(pictures(model, sample(model, *RUN)).double())
    layer.module.weight.data = own
    signs = random_signs(drawn[0], torch.Generator().manual_seed(7))
    moved = (drawn[0] - drawn[1]) / (2 * small)
    expected = (signs * moved).sum() / moved.numel() ** 0.5
    assert probed.item() == pytest.approx(expected.item(), abs=0.05 * moved.norm().item() + 1e-6)
    assert abs(expected) > 0


def test_the_effect_on_images_is_refused_where_steps_are_not_plain():
    model = tiny_generator("wan")
    assert no_image_effects(model) == "its scheduler, UniPCMultistepScheduler, takes no plain steps of Euler's method"
    model.pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    assert no_image_effects(model) == "its scheduler draws new noise in each step"


def test_latents_that_a_call_was_not_given_are_refused(tmp_path):
    model = tiny_generator("z-image")
    sample(model, *RUN, [CallRecorder(tmp_path, IMAGE)])
    batch = batch_of(tmp_path / "00007_000.safetensors")
    with pytest.raises(InputError, match=r"00007_000\.safetensors: its call was given other latents"):
        replace(batch, x=2 * batch.x).at(batch.x)


def test_from_a_folder_to_a_plan(tmp_path, monkeypatch):
    about = PIPELINES["z-image"]
    entry = Model(
        "dit", str(save_tiny("z-image", tmp_path / "m")), width=about.size, height=about.size, steps=3,
        guidance=about.guidance, max_sequence_length=about.length, dtype="bfloat16",
    )  # fmt: skip
    (tmp_path / "p.csv").write_text("prompt\na red ring\na blue star\n")
    calibrate("m", entry, tmp_path / "p.csv", tmp_path / "c", Calibrate(num_images=1, num_steps=3, shard_size=1))
    found = validate_calibration(tmp_path / "c", "m", 3)
    assert [(s.image, s.step_index) for s in found.samples] == [(i, s) for i in range(1) for s in range(3)]
    manifest = json.loads((tmp_path / "c/manifest.json").read_text())
    assert manifest["sample_files"][0] == "samples/00000_000.safetensors" and manifest["model_guidance"] == 3.0
    measured = read_table(tmp_path / "c/activations.parquet", "calibration.activations")
    settings = Sensitivity(bits=[2, 8], probes=1)
    sensitivity("m", entry, tmp_path / "c", tmp_path / "s.parquet", settings, fast=tmp_path / "f.parquet")
    table = read_table(tmp_path / "s.parquet", "sensitivity")
    assert set(measured["layer"]) == set(table["layer"])
    assert set(table["metric"]) == {"psnr_db", "sqnr_db", "relative_l2", "image_rms"}
    assert set(table["mode"]) == {"exact", "fast"} and set(table.filter(mode="fast")["metric"]) == {"image_rms"}
    effect = table.filter(metric="image_rms", bucket="all").group_by("bits").agg(v=pl.col("value").mean()).sort("bits")
    assert effect["v"][0] > 4 * effect["v"][1] > 0
    error = table.filter(metric="relative_l2").group_by("bits").agg(v=pl.col("value").mean()).sort("bits")
    assert error["v"][0] > error["v"][1]
    plan("m", [tmp_path / "s.parquet"], tmp_path / "plan.json", Budget(mean_bits=5.0), Plan())
    model = tiny_generator("z-image")
    loaded = load_plan(tmp_path / "plan.json", model.pipe.transformer)
    assert set(to_fqn_config(loaded, model.pipe.transformer).fqn_to_config) == set(loaded["layers"])
    schemes = {"low": Scheme("intx-weight-only", bits=3), "w8a8": Scheme("int8-dynamic")}
    sensitivity_formats("m", entry, tmp_path / "c", tmp_path / "formats.parquet", schemes, [*schemes], settings)
    formats = read_table(tmp_path / "formats.parquet", "sensitivity.formats")
    same = formats.filter(pl.col("format") == pl.col("other_format"), pl.col("piece") == pl.col("other_piece"))
    assert set(formats["metric"]) == {"image_rms"} and set(formats["layer"]) == set(loaded["layers"])
    assert same.filter(format="low")["moment"].sum() > same.filter(format="w8a8")["moment"].sum() > 0
    budget = Budget(mean_bits=5.0, formats=[*schemes], steps="thirds")
    plan("m", [tmp_path / "formats.parquet"], tmp_path / "plan.json", budget, Plan(), "b", schemes)
    assert load_plan(tmp_path / "plan.json", model.pipe.transformer)["metric"] == "image_rms"
    monkeypatch.setattr(on_calls, "no_image_effects", lambda model: "no plain steps")
    sensitivity_formats("m", entry, tmp_path / "c", tmp_path / "formats.parquet", schemes, ["low"], settings)
    formats = read_table(tmp_path / "formats.parquet", "sensitivity.formats")
    assert set(formats["metric"]) == {"relative_l2"} and (formats["moment"] >= 0).all()
    assert set(formats.filter(pl.col("piece") != pl.col("other_piece"))["moment"]) == {0.0}


# What is refused ----------------------------------------------------------------------------------------------------


def test_arguments_that_cannot_be_recorded_are_named(tmp_path):
    with pytest.raises(InputError, match=r"call0\.options\.hook\.1: a function cannot be recorded"):
        write_calls(tmp_path / "a.safetensors", {}, [((), {"hook": [1, print and (lambda: 1)]})], {})


def test_damaged_calls_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_calls(path, {"image_id": 0}, [((torch.ones(2),), {})], {"x": torch.ones(1), "prediction": torch.ones(1) / 0})
    with pytest.raises(InputError, match="tensor `prediction` is missing or has NaN"):
        read_calls(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="truncated safetensors"):
        about_calls(path)
    with pytest.raises(InputError, match="no such calibration sample"):
        about_calls(tmp_path / "none.safetensors")


def test_two_transformers_and_the_packed_format_are_refused(tmp_path):
    with pytest.raises(InputError, match="WanPipeline denoises with two transformers"):
        sample(tiny_generator("wan22"), *RUN, [CallRecorder(tmp_path, IMAGE)])
    with pytest.raises(InputError, match=r"calibrate\.format: `packed` is for NPZ"):
        calibrate("m", Model("dit", "x"), tmp_path / "p.csv", tmp_path / "c", Calibrate(format="packed"))
    assert not load_calibration.__doc__ or not any(tmp_path.iterdir())
