"""The MLX back end against torch: the same velocities, pictures, calibration sets and sensitivities."""

import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
import torch

pytest.importorskip("mlx.core", reason="MLX is not installed")
pytest.importorskip("diffusionkit.mlx", reason="DiffusionKit is not installed")

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from ditscope.benchmark.checkpoints import load_checkpoint, quantize
from ditscope.calibrate.files import check_made_with, load_calibration, read_sample
from ditscope.calibrate.load import batches
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.config import load_config
from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.models.bit_plan import load_plan, to_mlx
from ditscope.models.emulate.formats import FORMATS, rounded
from ditscope.models.families.common import Conditioning
from ditscope.models.hardware import filed_under
from ditscope.models.loading import load_generator
from ditscope.models.mlx.names import MlxConfig, mmdit_paths
from ditscope.models.mlx.network import converted, inexpressible
from ditscope.models.mlx.observe import hooked, watched
from ditscope.models.mlx.transformer import load_transformer
from ditscope.models.packed import packed_bytes
from ditscope.models.quantize import apply_scheme, layer_configs, mean_bits, nominal_bytes, stored_bytes, unsupported
from ditscope.models.quantizers import quantizable
from ditscope.models.requests import generate_slice
from ditscope.models.sampling import predict, sample
from ditscope.models.settings import Model, Scheme
from ditscope.plan.settings import Budget
from ditscope.plan.stage import plan
from ditscope.sensitivity.fast import estimate_layers
from ditscope.sensitivity.image import image_effects
from ditscope.sensitivity.on_mlx import weight_of
from ditscope.sensitivity.scores import assign_buckets, gather
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.stage import score, sensitivity, start
from ditscope.sensitivity.tables import IMAGE_METRIC, METRICS, layer_kind
from loose_tables import write_loosely
from tiny_models import tiny_generator
from workflow import ROOT

SLOWER = [pytest.mark.system, pytest.mark.long]

SHAPES = {
    "flux": Model("flux", str(ROOT / "models/shapes-flux"), width=64, height=64, steps=8),
    "sd3": Model("sd3", str(ROOT / "models/shapes-sd3"), width=64, height=64, steps=8, guidance=3.0),
}
ROWS = [
    {"prompt_id": str(i), "prompt": prompt, "negative_prompt": "", "seed": i, "derived_seed": False}
    for i, prompt in enumerate(["a large red ring at the left on a beige background", "a small blue star on the right"])
]


def on_mlx(entry, **changes):
    return dataclasses.replace(entry, backend="mlx", **changes)


@pytest.fixture(scope="module", params=SHAPES)
def shapes(request):
    """A shipped generator on torch and on MLX."""
    entry = SHAPES[request.param]
    return load_generator("shapes", entry), load_generator("shapes", on_mlx(entry))


def twin(kind, tmp_path, **changes):
    """A tiny generator whose weights are all far from their initial ones, and the same on MLX."""
    model = tiny_generator(kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.pipe.transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.pipe.transformer.save_pretrained(tmp_path / "transformer")
    other = tiny_generator(kind)
    entry = on_mlx(other.entry, **changes)
    other.pipe.transformer = load_transformer(tmp_path, "tiny", entry, other.device)
    return model, dataclasses.replace(other, entry=entry)


def latents(model):
    return sample(model, ["a", "b"], ["", ""], [1, 2])


def relative(a, b):
    return ((a.double() - b.double()).norm() / a.double().norm()).item()


def psnr(a, b):
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-12))


def test_velocity_of_a_calibration_sample_is_that_of_torch(shapes, tmp_path):
    of_torch, of_mlx = shapes
    (tmp_path / "p.csv").write_text("prompt\n" + ROWS[0]["prompt"] + "\n")
    settings = Calibrate(num_images=2, num_steps=6, cfg_weight=3.0)
    calibrate("shapes", of_torch.entry, tmp_path / "p.csv", tmp_path / "set", settings)
    calibration = load_calibration(tmp_path / "set")
    buckets = assign_buckets(calibration, "thirds", tmp_path)
    for batch in batches(of_torch, calibration, buckets, 2):
        assert relative(batch.velocity(of_torch), batch.velocity(of_mlx)) < 1e-4  # asked for: 1e-3


def test_pictures_are_those_of_torch(shapes):
    first, second = (generate_slice(model, ROWS) for model in shapes)
    for a, b in zip(first, second, strict=True):
        assert np.abs(a["latent.npy"] - b["latent.npy"]).max() < 1e-2
        assert (a["json"]["backend"], b["json"]["backend"]) == ("torch", "mlx")
        assert a["__key__"] != b["__key__"]
    a, b = (np.stack([png_pixels(s["png"]) for s in made]) for made in (first, second))
    assert psnr(a, b) >= 40


def png_pixels(data):
    from io import BytesIO

    from PIL import Image

    return np.asarray(Image.open(BytesIO(data)))


@pytest.mark.parametrize("kind", ["flux", "flux-distilled", "sd3"])
def test_every_weight_counts_as_in_torch(kind, tmp_path):
    """All weights moved at random: a dropped bias, swapped halves or another activation would show."""
    of_torch, of_mlx = twin(kind, tmp_path)
    assert relative(latents(of_torch), latents(of_mlx)) < 1e-4


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_half_precision_stays_near_and_compiled_is_the_same(kind, tmp_path):
    of_torch, of_mlx = twin(kind, tmp_path, dtype="bfloat16")
    plain = latents(of_mlx)
    assert plain.dtype == torch.bfloat16 and relative(latents(of_torch), plain) < 0.1
    of_mlx.pipe.transformer.compile()
    assert relative(plain, latents(of_mlx)) < 0.02
    one = sample(of_mlx, ["a"], [""], [1])  # another shape: traced again
    assert relative(plain[:1], one) < 0.05


def test_guidance_of_distilled_models_is_felt(tmp_path):
    _, of_mlx = twin("flux-distilled", tmp_path)
    weak, strong = (sample(of_mlx, ["a"], [""], [1], guidance=scale) for scale in (1.0, 8.0))
    assert relative(weak, strong) > 1e-3


@pytest.mark.parametrize("kind", ["flux", "flux-distilled", "sd3"])
def test_every_layer_has_its_place(kind, tmp_path):
    _, of_mlx = twin(kind, tmp_path)
    transformer = of_mlx.pipe.transformer
    places = {path for name in quantizable(transformer) for path in mmdit_paths(name)}
    weights = {path.rpartition(".")[0] for path, value in tree_flatten(transformer.mmdit.parameters())}
    assert places <= weights
    rest = {path for path in weights - places if "norm" not in path and "x_pos_embedder" not in path}
    assert not rest
    assert all(parameter.is_meta for parameter in transformer.parameters())  # no second copy in torch


@pytest.mark.system
def test_loading_leaves_the_log_alone():
    """DiffusionKit installs a handler of its own, which would show messages past the redaction of tokens."""
    code = "import logging, ditscope.models.mlx.transformer; print(logging.root.handlers, logging.root.manager.disable)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[] 0" and "coremltools" not in done.stderr


def test_split_and_swapped_layers():
    """A single block's output layer is split by its inputs, its bias goes once; scale and shift change places."""
    value = mx.arange(24).reshape(2, 12)
    first, second = converted("single_transformer_blocks.0.proj_out.weight", value, 2).values()
    assert mx.concatenate([first, second], axis=1).tolist() == value.tolist() and first.shape == (2, 2)
    bias = converted("single_transformer_blocks.0.proj_out.bias", mx.array([1.0, 2.0]), 2)
    assert [v.tolist() for v in bias.values()] == [[1, 2], [0, 0]]
    assert converted("norm_out.linear.bias", mx.array([1, 2, 3, 4]), 2).popitem()[1].tolist() == [3, 4, 1, 2]
    six = mx.arange(12)
    assert converted("transformer_blocks.0.norm1_context.linear.bias", six, 2).popitem()[1].tolist() == six.tolist()


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("sd3", {"dual_attention_layers": [0]}, "dual_attention"),
        ("sd3", {"qk_norm": "layer_norm"}, "layer_norm"),
        ("sd3", {"caption_projection_dim": 64}, "caption_projection_dim"),
        ("flux", {"num_single_layers": 0}, "single"),
        ("flux", {"out_channels": 8}, "out_channels"),
        ("flux", {"_class_name": "WanTransformer3DModel"}, "Wan"),
    ],
)
def test_what_the_mmdit_cannot_express_is_said(family, change, named):
    config = json.loads((ROOT / f"models/shapes-{family}/transformer/config.json").read_text())
    assert not inexpressible(config)
    assert named in inexpressible(config | change)


def test_refusals_name_the_model(tmp_path):
    models = {"m": dataclasses.asdict(on_mlx(SHAPES["flux"])), "b": {"family": "blip", "source": "x", "backend": "mlx"}}
    with pytest.raises(InputError, match=r"models\.b\.backend.*blip"):
        load_config({"models": models})
    models.pop("b")
    with pytest.raises(InputError, match="backends: `cuda` is not one of torch, mlx"):
        load_config({"models": models, "backends": ["cuda"]})
    for stage in ("capture", "ablate"):
        with pytest.raises(InputError, match=f"{stage}.models: `m` runs on MLX"):
            load_config({"models": models, stage: {"models": ["m"]}})
    config = json.loads((ROOT / "models/shapes-flux/transformer/config.json").read_text())
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no diffusion_pytorch_model"):
        load_transformer(tmp_path, "m", on_mlx(SHAPES["flux"]), torch.device("cpu"))
    mx.save_safetensors(str(folder / "diffusion_pytorch_model.safetensors"), {"odd.weight": mx.zeros((2, 2))})
    with pytest.raises(InputError, match=r"odd\.weight"):
        load_transformer(tmp_path, "m", on_mlx(SHAPES["flux"]), torch.device("cpu"))


# Quantization --------------------------------------------------------------------------------------------------------


def layers_on_mlx(transformer):
    modules = dict(transformer.mmdit.named_modules())
    return {name: [modules[path] for path in mmdit_paths(name)] for name in linear_layers(transformer)}


def linear_layers(transformer):
    return [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_schemes_of_mlx_have_the_nominal_size_as_a_file(bits, group_size, tmp_path):
    entry = on_mlx(SHAPES["flux"], dtype="bfloat16")
    scheme = Scheme("mlx-weight-only", bits=bits, group_size=group_size)
    transformer = load_generator("shapes", entry).pipe.transformer
    nominal, mean = nominal_bytes(transformer, scheme), mean_bits(transformer, scheme)
    quantize("shapes", entry, scheme, tmp_path / "w.safetensors")
    with open(tmp_path / "w.safetensors", "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    size = (tmp_path / "w.safetensors").stat().st_size - 8 - length
    assert abs(size / nominal - 1) < 0.02
    assert mean == pytest.approx(bits + 32 / group_size)  # a 16-bit scale and a 16-bit bias for each group


def test_quantized_layers_are_mlx_s_own_and_load_again(tmp_path):
    entry = on_mlx(SHAPES["sd3"])
    scheme = Scheme("mlx-weight-only", bits=4, group_size=32, skip_layers=["*norm*"])
    for name in ("a", "b"):
        quantize("shapes", entry, scheme, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    model = load_generator("shapes", entry)
    transformer, original = model.pipe.transformer, load_generator("shapes", entry).pipe.transformer
    apply_scheme(transformer, scheme)
    assert stored_bytes(transformer) < 0.6 * stored_bytes(original)
    for name, modules in layers_on_mlx(transformer).items():
        for module, own in zip(modules, layers_on_mlx(original)[name], strict=True):
            assert isinstance(module, nn.QuantizedLinear) != ("norm" in name)
            if "norm" not in name:
                again = mx.dequantize(module.weight, module.scales, module.biases, group_size=32, bits=4)
                spread = own.weight.reshape(-1, 32).max(axis=1) - own.weight.reshape(-1, 32).min(axis=1)
                error = mx.abs(again - own.weight).reshape(-1, 32).max(axis=1)
                assert (error <= spread / 15 * 1.1 + 1e-6).all().item()
    before = latents(model)
    model.pipe.transformer = load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(before, latents(model))


@pytest.mark.parametrize("mode", ["mxfp4", *(pytest.param(m, marks=SLOWER) for m in ("mxfp8", "nvfp4"))])
def test_modes_of_floats_are_the_formats_that_their_names_say(mode, tmp_path):
    entry = on_mlx(SHAPES["sd3"])
    scheme = Scheme("mlx-weight-only", format=mode, skip_layers=["*norm*"])
    model = load_generator("shapes", entry)
    transformer, original = model.pipe.transformer, load_generator("shapes", entry).pipe.transformer
    nominal, skipped = nominal_bytes(transformer, scheme), latents(model)
    apply_scheme(transformer, scheme)
    assert stored_bytes(transformer) == nominal
    kind = FORMATS[mode]
    for name, modules in layers_on_mlx(transformer).items():
        for module, own in zip(modules, layers_on_mlx(original)[name], strict=True):
            if "norm" in name:
                continue
            assert (module.mode, module.bits, module.group_size) == (mode, kind.bits, kind.group)
            made = mx.dequantize(module.weight, module.scales, group_size=kind.group, bits=kind.bits, mode=mode)
            made, own = (torch.from_numpy(np.array(w.astype(mx.float32))) for w in (made, own.weight))
            ours = rounded(own, kind)  # MLX rounds some scales otherwise: neither is far worse on the whole
            assert 0.5 < (made - own).norm() / (ours - own).norm() < 2
    assert 0 < relative(skipped, latents(model)) < 0.5
    quantize("shapes", entry, scheme, tmp_path / "w.safetensors")
    before = latents(model)
    model.pipe.transformer = load_checkpoint(tmp_path / "w.safetensors")
    assert torch.equal(before, latents(model))


def test_sixteen_bits_are_bfloat16_weights():
    """The shipped weights are bfloat16: at 16 bits nothing is lost, and half the bytes of float32 are saved."""
    entry = on_mlx(SHAPES["flux"])
    model, scheme = load_generator("shapes", entry), Scheme("mlx-weight-only", bits=16)
    before, nominal = latents(model), nominal_bytes(model.pipe.transformer, scheme)
    apply_scheme(model.pipe.transformer, scheme)
    assert relative(before, latents(model)) < 1e-5
    assert stored_bytes(model.pipe.transformer) == pytest.approx(nominal, rel=0.02)
    assert nominal < 0.52 * stored_bytes(load_generator("shapes", entry).pipe.transformer)


def test_fewer_bits_move_the_picture_more(tmp_path):
    reference, errors = latents(twin("flux", tmp_path)[1]), []
    for bits in (8, 6, 4, 2):
        _, of_mlx = twin("flux", tmp_path)
        apply_scheme(of_mlx.pipe.transformer, Scheme("mlx-weight-only", bits=bits, group_size=32))
        errors.append(relative(reference, latents(of_mlx)))
    assert errors == sorted(errors) and errors[0] < 0.05


def test_plan_becomes_bits_of_each_layer(tmp_path):
    model = load_generator("shapes", on_mlx(SHAPES["flux"]))
    transformer = model.pipe.transformer
    names = linear_layers(transformer)
    bits = {name: (2, 3, 4, 6, 8)[i % 5] for i, name in enumerate(names)}
    document = {"schema_version": "1", "budget": "mixed", "group_size": 32, "layers": bits}
    (tmp_path / "plan.json").write_text(json.dumps(document))
    configs = to_mlx(load_plan(tmp_path / "plan.json", transformer), transformer)
    assert configs == {name: MlxConfig(bits[name], 32) for name in names}
    scheme = Scheme("plan", plan="mixed")
    nominal = nominal_bytes(transformer, scheme, tmp_path / "plan.json")
    apply_scheme(transformer, scheme, tmp_path / "plan.json")
    assert {n: {m.bits for m in modules} for n, modules in layers_on_mlx(transformer).items()} == {
        name: {bits[name]} for name in names
    }
    assert stored_bytes(transformer) == pytest.approx(nominal, rel=0.02)
    assert latents(model).isfinite().all()
    for change, named in (
        ({"group_size": 16}, "group_size 16"),
        ({"layers": bits | {"proj_out": 7}}, "`proj_out` has 7"),
    ):
        with pytest.raises(InputError, match=named):
            to_mlx(document | change, transformer)


@pytest.mark.parametrize("quantizer", ["group", "palettize"])
def test_plan_keeps_its_budget_as_mlx_stores_it(tmp_path, quantizer):
    """Counted from the packed words, scales and biases that MLX holds after the plan was applied."""
    _, of_mlx = twin("sd3", tmp_path)
    transformer = of_mlx.pipe.transformer
    rows = [
        {
            "model": "tiny", "backend": "mlx", "layer": name, "kind": layer_kind(name), "depth": 0, "module": "linear",
            "bits": bits, "quantizer": quantizer, "group_size": 32, "bucket": "early", "metric": "relative_l2",
            "value": 0.5**bits / (1 + i), "parameters": module.weight.numel(),
            "packed_bytes": packed_bytes("mlx", name, *module.weight.shape, bits, 32, 4),
        }
        for i, (name, module) in enumerate(quantizable(transformer).items()) if module.weight.ndim == 2
        for bits in (2, 4, 8)
    ]  # fmt: skip
    write_loosely(pl.DataFrame(rows), tmp_path / "t.parquet", "sensitivity")
    plan("tiny", [tmp_path / "t.parquet"], tmp_path / "p.json", Budget(mean_bits=7.5))
    made, scheme = load_plan(tmp_path / "p.json", transformer), Scheme("plan", plan="b")
    assert set(made["full_precision"]) == {r["layer"] for r in rows} - set(made["layers"]) != set()
    before = stored_bytes(transformer)
    weights = sum(transformer.get_submodule(name).weight.nbytes for name in made["layers"])
    assert nominal_bytes(transformer, scheme, tmp_path / "p.json") - (before - weights) == made["nominal_bytes"]
    apply_scheme(transformer, scheme, tmp_path / "p.json")
    stored = sum(
        array.nbytes
        for name, modules in layers_on_mlx(transformer).items()
        if name in made["layers"]
        for module in modules
        for array in (module.weight, module.scales, module.biases)
    )
    assert stored == made["nominal_bytes"]
    parameters = sum(r["parameters"] for r in rows if r["bits"] == 2 and r["layer"] in made["layers"])
    assert 6 < 8 * stored / parameters <= 7.5


def test_layers_that_a_group_does_not_divide_stay(tmp_path):
    """The tiny FLUX is 32 wide: groups of 64 divide the whole row of a single block's output layer, not its parts."""
    _, of_mlx = twin("flux", tmp_path)
    configs = layer_configs(of_mlx.pipe.transformer, Scheme("mlx-weight-only", bits=4, group_size=32))
    assert "x_embedder" not in configs and "single_transformer_blocks.0.proj_out" in configs
    configs = layer_configs(of_mlx.pipe.transformer, Scheme("mlx-weight-only", bits=4, group_size=64))
    assert set(configs) == {n for n in linear_layers(of_mlx.pipe.transformer) if n.endswith("net.2")} | {
        "time_text_embed.timestep_embedder.linear_1"
    }
    apply_scheme(of_mlx.pipe.transformer, Scheme("mlx-weight-only", bits=4, group_size=64))
    assert latents(of_mlx).isfinite().all()


@pytest.mark.parametrize(
    ("scheme", "device", "named"),
    [
        (Scheme("mlx-weight-only"), "cpu", "needs a model with `backend: mlx`"),
        (Scheme("int8-weight-only"), "mlx", "needs a model with `backend: torch`"),
        (Scheme("base", fuse_qkv=True), "mlx", "fuse_qkv is torch's"),
        (Scheme("mlx-weight-only", compile_vae=True), "mlx", "compile_vae is torch's"),
    ],
)
def test_schemes_of_the_other_back_end_have_a_reason(scheme, device, named):
    assert named in unsupported(scheme, device)
    assert not unsupported(Scheme("base"), device) and not unsupported(Scheme("plan"), device)


@pytest.mark.parametrize("change", [{"bits": 7}, {"bits": 4, "group_size": 16}, {"bits": 32}])
def test_bits_and_groups_that_mlx_has_not_are_refused(change):
    transformer = load_generator("shapes", on_mlx(SHAPES["flux"])).pipe.transformer
    with pytest.raises(InputError, match="MLX packs bits"):
        layer_configs(transformer, Scheme("mlx-weight-only", **change))


# Calibration and sensitivity -----------------------------------------------------------------------------------------


def test_calibration_on_mlx_keeps_the_contract(shapes, tmp_path):
    """The same NPZ files from both back ends: starting noise and conditioning to the bit, later steps to tolerance."""
    (tmp_path / "p.csv").write_text("prompt\n" + ROWS[0]["prompt"] + "\n")
    sets = []
    for model in shapes:
        folder = tmp_path / model.entry.backend
        calibrate("shapes", model.entry, tmp_path / "p.csv", folder, Calibrate(num_images=1, num_steps=4, cfg_weight=2))
        assert check_made_with(folder, load_calibration(folder), "shapes") is None
        sets.append([read_sample(s) for s in load_calibration(folder).samples])
    assert [len(s) for s in sets] == [4, 4]
    for a, b in zip(*sets, strict=True):
        assert a.keys() == b.keys() and a["x"].shape == b["x"].shape and a["x"].dtype == b["x"].dtype
        assert np.array_equal(a["conditioning"], b["conditioning"]) and a["sigma"] == b["sigma"]
        assert np.abs(a["x"] - b["x"]).max() < (1e-3 if a["step_index"] else 1e-12)


def calibrated(models, tmp_path, monkeypatch):
    """A calibration set of each of two tiny generators, which `calibrate` and `sensitivity` then load as `tiny`."""
    (tmp_path / "p.csv").write_text("prompt\na red ring\na blue star\n")
    by_back_end = {model.entry.backend: model for model in models}
    for module in ("calibrate", "sensitivity"):
        monkeypatch.setattr(f"ditscope.{module}.stage.load_generator", lambda name, entry: by_back_end[entry.backend])
    config = dict(models[0].pipe.transformer.config)
    monkeypatch.setattr("ditscope.calibrate.load.transformer_config", lambda name, entry: config)
    for model in models:
        made = Calibrate(num_images=2, num_steps=3, cfg_weight=2)
        calibrate("tiny", model.entry, tmp_path / "p.csv", tmp_path / model.entry.backend, made)


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_sensitivity_on_mlx_is_that_of_torch(kind, tmp_path, monkeypatch):
    """The same layers, kinds and places, and the same scores, for both quantizers."""
    models = twin(kind, tmp_path)
    calibrated(models, tmp_path, monkeypatch)
    calibration = load_calibration(tmp_path / "torch", max_images=1)
    buckets = assign_buckets(calibration, "thirds", tmp_path)
    for quantizer in ("group", "palettize"):
        settings = Sensitivity(bits=[3], quantizer=quantizer, group_size=16, batch_size=8)
        works = [start(model, calibration, buckets, settings, tmp_path) for model in models]
        first, second = ([layer.described(settings) for layer in work.network.layers] for work in works)
        assert first == second and len(first) > 25 and works[0].depths == works[1].depths
        for depth in works[0].depths:
            a, b = (
                pl.DataFrame(score(w, depth, list(batches(w.network.model, calibration, buckets, 8)))) for w in works
            )
            key = ["layer", "bits", "bucket", "image", "step_index"]
            a, b = a.sort(key), b.sort(key)
            assert a.select(key).equals(b.select(key))
            for metric in METRICS:
                tolerance = {"rtol": 5e-3, "atol": 1e-5} if metric == "relative_l2" else {"rtol": 0, "atol": 0.05}
                np.testing.assert_allclose(b[metric], a[metric], **tolerance)


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_gradients_on_mlx_are_those_of_torch(kind, tmp_path, monkeypatch):
    """The same probes of the velocity, and of the image back through all steps: the same estimates for every layer."""
    models = twin(kind, tmp_path)
    calibrated(models, tmp_path, monkeypatch)
    calibration = load_calibration(tmp_path / "torch")
    buckets = assign_buckets(calibration, "thirds", tmp_path)
    settings = Sensitivity(bits=[3, 6], group_size=16, probes=2, gradient_batch=2)
    tables = []
    for model in models:
        work = start(model, calibration, buckets, settings, tmp_path)
        samples = batches(model, calibration, buckets, 2)
        rows = [
            estimate_layers(model, work.network.layers, samples, buckets, settings),
            image_effects(model, work.network.layers, calibration, buckets, settings),
        ]
        key = ["layer", "bits", "bucket"]
        tables.append([pl.DataFrame(part).sort(*key, maintain_order=True) for part in rows])
    for of_torch, of_mlx, metrics in zip(*tables, (METRICS, [IMAGE_METRIC]), strict=True):
        assert of_torch.select(key).equals(of_mlx.select(key))
        assert set(of_torch["layer"]) == set(quantizable(models[0].pipe.transformer))
        for metric in metrics:
            largest = of_torch[metric].max()
            np.testing.assert_allclose(of_mlx[metric], of_torch[metric], rtol=2e-2, atol=1e-5 * largest)
    transformer = models[1].pipe.transformer
    assert transformer.gather is None and not transformer.wanted
    assert relative(latents(models[0]), latents(models[1])) < 1e-3, "its weights are as before"


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_sensitivity_job_on_mlx_leaves_its_tables(mode, tmp_path, monkeypatch):
    of_torch, of_mlx = twin("flux", tmp_path)
    calibrated([of_mlx], tmp_path, monkeypatch)
    settings = Sensitivity(bits=[4], mode=mode, max_images=1, probes=2)
    out, fast = tmp_path / "t.parquet", tmp_path / "fast.parquet"
    sensitivity("tiny", of_mlx.entry, tmp_path / "mlx", out, settings, fast=fast)
    table = read_table(out, "sensitivity")
    assert set(table["metric"]) == {*METRICS, IMAGE_METRIC} and set(table["mode"]) == {mode, "fast"}
    for part in (table, read_table(fast, "sensitivity")):
        assert set(part["layer"]) == set(quantizable(of_torch.pipe.transformer))
    gather([out], tmp_path / "all.parquet", [fast], tmp_path / "agreement.parquet")
    agreement = read_table(tmp_path / "agreement.parquet", "sensitivity.agreement")
    assert len(agreement) == 9  # three metrics, three buckets
    plan("tiny", [out], tmp_path / "plan.json", Budget(uniform_bits=4))
    assert to_mlx(load_plan(tmp_path / "plan.json", of_mlx.pipe.transformer), of_mlx.pipe.transformer)


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_activation_statistics_are_those_of_torch(kind, tmp_path, monkeypatch):
    """Every layer of every step: the same channels with the same extremes, percentiles and midpoints."""
    models = twin(kind, tmp_path)
    calibrated(models, tmp_path, monkeypatch)
    a, b = (read_table(tmp_path / f"{b}/activations.parquet", "calibration.activations") for b in ("torch", "mlx"))
    assert not hooked(models[1].pipe.transformer)
    assert a.columns == b.columns and set(a["layer"]) == set(quantizable(models[1].pipe.transformer))
    key = ["layer", "kind", "step_index", "n", "channels"]
    assert a.select(key).equals(b.select(key))
    for column in ("channel_min", "channel_max", "channel_p99", "channel_shift"):
        for row, other in zip(a[column].to_list(), b[column].to_list(), strict=True):
            np.testing.assert_allclose(other, row, rtol=0, atol=2e-3 * np.abs(row).max() + 1e-6)


def test_only_the_layers_with_hooks_are_watched_and_only_within_the_context(shapes):
    """Another model that computes meanwhile, and the library's own classes, are as ever."""
    transformer = shapes[1].pipe.transformer
    modules = dict(transformer.mmdit.named_modules())
    whole = (name for name in quantizable(transformer) if len(mmdit_paths(name)) == 1)
    name, path = next((n, *mmdit_paths(n)) for n in whole if isinstance(modules[mmdit_paths(n)[0]], nn.Linear))
    layer, kinds, calls = modules[path], {path: type(m) for path, m in modules.items()}, nn.Linear.__call__
    other, x = nn.Linear(*layer.weight.shape[::-1]), mx.ones((1, layer.weight.shape[1]))
    expected, seen = layer(x), []
    handle = transformer.get_submodule(name).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with pytest.raises(ZeroDivisionError), watched(transformer, transformer.mmdit):
        assert nn.Linear.__call__ is calls
        assert {p: type(m) for p, m in modules.items() if p != path} == {p: k for p, k in kinds.items() if p != path}
        other(x)
        assert not seen and mx.array_equal(layer(x), expected)
        assert torch.equal(seen[0], torch.ones(1, layer.weight.shape[1]))
        raise ZeroDivisionError
    handle.remove()
    assert {path: type(m) for path, m in modules.items()} == kinds


def test_weights_come_back_after_they_were_changed(shapes):
    transformer = shapes[1].pipe.transformer
    before = dict(tree_flatten(transformer.mmdit.parameters()))
    for name, module in quantizable(transformer).items():
        with weight_of(transformer, name, torch.zeros(module.weight.shape)):
            now = dict(tree_flatten(transformer.mmdit.parameters()))
            zeroed = {path for path in now if now[path] is not before[path]}
            assert zeroed == {f"{path}.weight" for path in mmdit_paths(name)}
            assert all((now[path] == 0).all().item() for path in zeroed)
        after = dict(tree_flatten(transformer.mmdit.parameters()))
        assert all(after[path] is before[path] for path in after)


def test_results_of_the_other_half_s_machine_are_joined_as_they_are(tmp_path, monkeypatch):
    assert filed_under(tmp_path / "none", "cpu", "mlx") == ["cpu"]
    (tmp_path / "apple-m4").mkdir()
    for platform, foreign, native in (("linux", "mlx", "torch"), ("darwin", "torch", "mlx")):
        monkeypatch.setattr("sys.platform", platform)
        assert filed_under(tmp_path, "cpu", foreign) == ["apple-m4"]
        assert filed_under(tmp_path, "cpu", native) == ["cpu"]
    (tmp_path / "cpu").mkdir()
    assert filed_under(tmp_path, "cpu", "torch") == ["cpu"]  # measured here already


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_a_backward_pass_runs_in_a_thread_of_its_own(kind, tmp_path):
    """Torch runs that of an accelerator in the device's thread, where MLX has no stream of the main thread's arrays."""
    _, model = twin(kind, tmp_path)
    config = model.pipe.transformer.config
    drawn = torch.Generator().manual_seed(0)
    shapes = (1, 5, config.joint_attention_dim), (1, config.pooled_projection_dim)
    cond = Conditioning(*(torch.randn(shape, generator=drawn) for shape in shapes))
    x = torch.randn(1, 4, 16, 16, generator=drawn).requires_grad_()

    def gradient(run):
        velocity = predict(model, x, torch.tensor(0.5), cond, 1.0)
        gradients = []
        run(lambda: gradients.extend(torch.autograd.grad(velocity.square().sum(), x)))
        return gradients[0]

    def elsewhere(work):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()

    here = gradient(lambda work: work())
    assert torch.equal(gradient(elsewhere), here)
    assert torch.equal(gradient(lambda work: work()), here), "and nothing of the thread's is left for this one"
