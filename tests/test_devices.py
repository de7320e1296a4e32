"""What a GPU or a Mac does that a CPU does not, as far as a CPU can show it."""

import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn

import ditscope.refine.diagnose as refine_diagnose
import ditscope.refine.train as refine_train
from ditscope import calibrate as calibrate_stage
from ditscope import sensitivity as sensitivity_stage
from ditscope.refine.codebook import build_codebook
from ditscope.sampling import encode_prompts, noise_of, sample
from ditscope.settings import Calibrate, Sensitivity
from ditscope.tables import read_table
from fake_device import DEVICE, accelerator, moved
from refine_latents import write_discs
from test_refine_training import TINY
from tiny_models import ENTRIES, tiny_generator


def on_accelerator(kind: str):
    """A tiny generator whose weights lie on the pretend accelerator; call it within `accelerator()`."""
    model = tiny_generator(kind)
    for part in (model.pipe.transformer, model.pipe.vae):
        moved(part)
    return replace(model, device=DEVICE)


# No float64 on a device: MPS has none --------------------------------------------------------------------------------


def test_the_pretend_accelerator_computes_and_refuses_float64():
    x = torch.randn(3, 4)
    with accelerator() as device:
        there = x.to(device)
        assert there.device == device and (there @ there.T).device == device
        assert torch.equal((there @ there.T).cpu(), x @ x.T)
        assert there.cpu().double().dtype == torch.float64
        assert torch.tensor([1.0], device=device).device == torch.zeros(2, device=device).device == device
        for make in (lambda: there.double(), lambda: x.double().to(device)):
            with pytest.raises(TypeError, match="float64"):
                make()


def test_sampling_on_the_pretend_accelerator_gives_the_latents_of_the_cpu():
    plain = tiny_generator("sd3")
    cond = encode_prompts(plain, ["a", "b"], ["", ""])
    with accelerator() as device:
        model = on_accelerator("sd3")
        there = replace(cond, **{key: tensor.to(device) for key, tensor in vars(cond).items()})
        latents = sample(model, noise_of(model, [0, 1]), there).cpu()
    torch.testing.assert_close(latents, sample(plain, noise_of(plain, [0, 1]), cond))


@pytest.fixture
def calibration(tmp_path: Path, monkeypatch):
    """A function that calibrates a tiny model and returns the folder."""

    def make(kind: str) -> Path:
        monkeypatch.setattr(calibrate_stage, "load_generator", lambda name, entry: tiny_generator(kind))
        (tmp_path / "prompts.csv").write_text("prompt\na red ring\n")
        settings = Calibrate(num_images=1, num_steps=3, cfg_weight=3.0)
        calibrate_stage.calibrate("tiny", ENTRIES[kind], tmp_path / "prompts.csv", tmp_path / kind, settings)
        return tmp_path / kind

    return make


def test_sensitivity_makes_no_float64_on_the_device(calibration, tmp_path, monkeypatch):
    """Exact and fast scores and the effects on images, with a device that has no float64, as on the CPU.

    Of SD3: diffusers' FLUX has float64 frequencies unless the device's own name is `mps`.
    """
    kind = "sd3"
    folder = calibration(kind)
    settings = Sensitivity(bits=[4], probes=1)

    def tables(place: str) -> list[pl.DataFrame]:
        files = [tmp_path / f"{place}-{name}.parquet" for name in ("layers", "fast")]
        sensitivity_stage.sensitivity("tiny", ENTRIES[kind], folder, files[0], settings, fast=files[1])
        return [read_table(file, "sensitivity") for file in files]

    monkeypatch.setattr(sensitivity_stage, "load_generator", lambda name, entry: tiny_generator(kind))
    on_cpu = tables("cpu")
    monkeypatch.setattr(sensitivity_stage, "load_generator", lambda name, entry: on_accelerator(kind))
    with accelerator():
        there = tables("device")
    for a, b in zip(on_cpu, there, strict=True):
        assert a.height == b.height > 50 and b["value"].is_finite().all()
        # What exact mode reuses it tells by the identity of tensors, which the pretend ones do not keep.
        a, b = (table.filter(pl.col("mode") == "fast") for table in (a, b))
        assert_frame_equal(a, b, rel_tol=1e-3, abs_tol=1e-4)


def test_the_refiner_makes_no_float64_on_the_device(tmp_path, monkeypatch):
    """Training and diagnosis, but for the decoding of pictures, which the model's own VAE does."""
    shard = write_discs(tmp_path / "shard-00000.tar")
    build_codebook([shard], tmp_path / "codebook.safetensors", tmp_path / "assignments.parquet", TINY)
    names = ("latent_mae.safetensors", "refiner.safetensors", "training.parquet", "training.timing.parquet")
    files = [tmp_path / name for name in names]
    for module in ("train", "diagnose"):
        monkeypatch.setattr(f"ditscope.refine.{module}.default_device", lambda: DEVICE.type, raising=False)
    monkeypatch.setattr("ditscope.refine.optimize.default_device", lambda: DEVICE.type)
    able = "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], able, lambda: [DEVICE.type])
    monkeypatch.setattr(nn.Module, "to", lambda module, device: moved(module) if device == DEVICE else module)
    with accelerator():
        refine_train.train([shard], tmp_path / "assignments.parquet", *files, settings=TINY)
        monkeypatch.setattr(refine_diagnose, "resolve_source", lambda name, model: tmp_path)
        monkeypatch.setattr(refine_diagnose, "decode_pictures", lambda *args: [])
        monkeypatch.setattr(refine_diagnose, "draw_grid", lambda *args: None)
        refine_diagnose.diagnose(
            "tiny",
            ENTRIES["sd3"],
            [shard],
            tmp_path / "codebook.safetensors",
            tmp_path / "assignments.parquet",
            *files[:3],
            *(tmp_path / name for name in ("d.parquet", "n.parquet", "t.parquet", "record.json", "s.png", "e.png")),
            settings=TINY,
        )
    assert read_table(tmp_path / "d.parquet", "refine.diagnostics").height > 20
