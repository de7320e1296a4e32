"""Calibrated schemes end to end: calibrate a small transformer, solve its layers from that set, benchmark it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from any_pipelines import PIPELINES, save_tiny
from any_pipelines import tiny_generator as any_generator
from ditscope.benchmark import checkpoints
from ditscope.benchmark import run as run_module
from ditscope.benchmark.run import case_of, measure, wanted_runs
from ditscope.benchmark.settings import Benchmark
from ditscope.calibrate import load as calibrate_load
from ditscope.calibrate import stage as calibrate_stage
from ditscope.calibrate.load import calibration_id, calibration_of_scheme, measure_on
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.config import Config, check
from ditscope.core.errors import InputError
from ditscope.core.settings import decode
from ditscope.core.tables import read_table
from ditscope.models import requests
from ditscope.models.emulate.layer import EmulatedLinear
from ditscope.models.prepare import prepare
from ditscope.models.quantize import coverage
from ditscope.models.sampling import sample
from ditscope.models.settings import CALIBRATED, Model, Scheme, calibrated_on
from ditscope.trajectories.networks import on_sets, resolve_network
from tiny_models import tiny_generator

SCHEMES = {"base": Scheme("base")} | {kind: Scheme(kind, bits=4, group_size=8, rank=2) for kind in CALIBRATED}
SETTINGS = Benchmark(batches=[1], repeats=1, warmup=0, num_images=2, hardware="here", num_steps=2)


@pytest.fixture
def calibrated(tmp_path, monkeypatch):
    """A function that calibrates a tiny model (2 images of 2 steps), which all stages then load; gives the folder."""

    def make(kind: str) -> Path:
        config = dict(tiny_generator(kind).pipe.transformer.config)
        for module in (calibrate_stage, run_module, checkpoints):
            monkeypatch.setattr(module, "load_generator", lambda name, entry: tiny_generator(kind, name))
        monkeypatch.setattr(calibrate_load, "transformer_config", lambda name, entry: config)
        monkeypatch.setattr(requests, "prompt_tokens", lambda model, prompt: (3, False))
        csv = tmp_path / "prompts.csv"
        csv.write_text("prompt,seed\na red ring,1\na blue star,2\n")
        entry = tiny_generator(kind).entry
        calibrate("tiny", entry, csv, tmp_path / kind, Calibrate(num_images=2, num_steps=2, cfg_weight=3.0))
        return tmp_path / kind

    return make


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_every_calibrated_kind_is_benchmarked_as_any_other(kind, calibrated, tmp_path):
    folder, entry = calibrated(kind), tiny_generator(kind).entry
    for name in CALIBRATED:
        case = case_of("tiny", entry, SCHEMES, name, "eager", None, SETTINGS, folder)
        measure(case, wanted_runs([tmp_path / "prompts.csv"], SETTINGS), tmp_path / "out")
        run = read_table(tmp_path / "out" / f"{name}-eager.parquet", "benchmark.run").row(0, named=True)
        assert run["simulated"] and run["reason"] == "" and run["images"] == 2 and run["kind"] == name
        assert run["quantized_layers"] > 10 and run["nominal_bytes"] < run["stored_bytes"]
        left = coverage(tiny_generator(kind).pipe.transformer, SCHEMES[name])[1]
        assert run["indivisible_layers"] == len(left)


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_layers_are_solved_from_what_they_are_given_in_the_recorded_steps(kind, calibrated):
    folder, model = calibrated(kind), tiny_generator(kind)
    scheme = calibrated_on(SCHEMES["gptq"], "tiny", folder)
    seen = []
    layer = model.pipe.transformer.get_submodule("transformer_blocks.0.attn.to_q")
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))
    measure = measure_on(model, calibration_of_scheme(scheme, "tiny", model.entry))
    inputs = measure({"q": layer}, True)["q"]
    hook.remove()
    x = torch.cat([part.flatten(0, -2) for part in seen])
    assert inputs.n == len(x) and len(seen) == 2  # steps; images and halves of guidance lie in one batch
    torch.testing.assert_close(inputs.hessian, x.mT @ x / len(x))
    assert prepare(model, scheme, "eager", None, measure) == ""
    assert isinstance(model.pipe.transformer.get_submodule("transformer_blocks.0.attn.to_q"), EmulatedLinear)


def test_recorded_calls_of_any_transformer_solve_its_layers(tmp_path):
    about = PIPELINES["z-image"]
    source = str(save_tiny("z-image", tmp_path / "model"))
    entry = Model(
        "dit", source, width=about.size, height=about.size, steps=2, max_sequence_length=about.length, call=about.call
    )
    (tmp_path / "prompts.csv").write_text("prompt\na red ring\n")
    calibrate("any", entry, tmp_path / "prompts.csv", tmp_path / "set", Calibrate(num_images=1, num_steps=2))
    model = any_generator("z-image")
    own = sample(model, ["a red ring"], [""], [3])
    scheme = calibrated_on(Scheme("gptq", bits=8), "any", tmp_path / "set")
    measure = measure_on(model, calibration_of_scheme(scheme, "any", entry))
    assert prepare(model, scheme, "eager", None, measure) == ""
    layers = [m for m in model.pipe.transformer.modules() if isinstance(m, nn.Linear)]
    assert layers and all(isinstance(layer, EmulatedLinear) for layer in layers)
    made = sample(model, ["a red ring"], [""], [3])
    assert 0 < float((made - own).norm() / own.norm()) < 0.2
    with pytest.raises(InputError, match=r"`tiny` \(flux\) takes NPZ samples; calibrate `tiny`"):
        flux = replace(tiny_generator("flux").entry, source="")
        manifest = tmp_path / "set" / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"model": "tiny"}))
        calibration_of_scheme(scheme, "tiny", flux)


def test_calibration_that_does_not_serve_is_refused_before_a_model_loads(calibrated, tmp_path, monkeypatch):
    folder, entry = calibrated("flux"), tiny_generator("flux").entry
    monkeypatch.setattr(run_module, "load_generator", None)  # work must not start

    def ask(name="tiny", model=entry, scheme="gptq", given: Path | None = folder):
        case_of(name, model, SCHEMES, scheme, "eager", None, SETTINGS, given)

    with pytest.raises(InputError, match="kind `gptq` is solved from a calibration set: give its folder"):
        ask(given=None)
    with pytest.raises(InputError, match="made with model `tiny`, not `other`; calibrate `other`"):
        ask(name="other")
    with pytest.raises(InputError, match="no calibration samples"):
        ask(given=tmp_path / "nothing")
    monkeypatch.setattr(calibrate_load, "weights_of", lambda entry: "others")
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights": "these"}))
    with pytest.raises(InputError, match="made with other weights of `tiny`; calibrate `tiny` again"):
        ask()
    monkeypatch.undo()
    config = dict(tiny_generator("flux").pipe.transformer.config) | {"joint_attention_dim": 99}
    monkeypatch.setattr(calibrate_load, "transformer_config", lambda name, entry: config)
    with pytest.raises(InputError, match="`conditioning` is 24 wide, `tiny` takes 99"):
        ask()
    next(folder.glob("samples/*.npz")).write_bytes(b"PK")
    with pytest.raises(InputError, match=r"NPZ|pickled"):
        ask()
    ask(scheme="base", given=None)  # which needs none


def test_pictures_are_named_by_the_set_that_their_scheme_is_solved_from(calibrated):
    folder = calibrated("flux")
    scheme = calibrated_on(SCHEMES["gptq"], "tiny", folder)
    whole, first = calibration_id(scheme), calibration_id(replace(scheme, calibration_images=1))
    assert whole != first and calibration_id(SCHEMES["base"]) == ""
    moved = folder.rename(folder.with_name("moved"))
    assert calibration_id(replace(scheme, calibration=str(moved))) == whole


def test_which_set_a_scheme_names():
    named = Scheme("gptq", calibration="sets/{model}")
    assert calibrated_on(named, "m", "made").calibration == "sets/m"
    assert calibrated_on(Scheme("gptq"), "m", "made/m").calibration == "made/m"
    assert calibrated_on(Scheme("nearest"), "m", "made/m").calibration == ""
    models = {"a": Model("flux"), "c": Model("blip")}
    entries = on_sets(resolve_network("n", ["a:g", "c"], models, {"g": Scheme("awq")}), lambda name: f"s/{name}")
    assert entries[0].scheme.calibration == "s/a" and entries[1].scheme is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "int8-weight-only", "format": "mxfp4"}, "schemes.s.format: `int8-weight-only` does not read it"),
        ({"kind": "int8-dynamic", "activations": "int4"}, "schemes.s.activations: `int8-dynamic` does not read it"),
        ({"kind": "nearest", "format": "fp6"}, "schemes.s.format"),
        ({"kind": "gptq", "damping": 0.0}, "schemes.s.damping"),
        ({"kind": "smoothquant", "alpha": 1.5}, "schemes.s.alpha"),
        ({"kind": "svdquant", "rank": 0}, "schemes.s.rank"),
    ],
)
def test_settings_that_a_kind_does_not_read_are_refused(entry, message):
    with pytest.raises(InputError, match=message):
        check(decode(Config, {"experiment": "e", "schemes": {"s": entry}}))
