"""What a GPU or a Mac does that a CPU does not, as far as a CPU can show it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
import yaml
from polars.testing import assert_frame_equal
from torch import nn

import ditscope.refine.diagnose as refine_diagnose
import ditscope.refine.train as refine_train
from ditscope.calibrate import load as calibrate_load
from ditscope.calibrate import stage as calibrate_stage
from ditscope.calibrate.load import Batch
from ditscope.calibrate.settings import Calibrate
from ditscope.core import determinism
from ditscope.core.tables import read_table
from ditscope.models import loading
from ditscope.models.hardware import host_memory_bytes
from ditscope.models.placement import keep_encoders_in_host_memory
from ditscope.models.sampling import Observer, pictures, sample
from ditscope.models.settings import Model
from ditscope.refine.adapter import Adapter
from ditscope.refine.codebook import build_codebook
from ditscope.refine.dataset import open_dataset
from ditscope.refine.diagnose import read_encoder
from ditscope.refine.evaluate import Judge, pooled_by
from ditscope.refine.refiner_file import load_refiner
from ditscope.sensitivity import gradient_memory
from ditscope.sensitivity import image as sensitivity_image
from ditscope.sensitivity import stage as sensitivity_stage
from ditscope.sensitivity.fast import random_signs
from ditscope.sensitivity.image import pull_back_image
from ditscope.sensitivity.settings import Sensitivity
from fake_device import DEVICE, accelerator, moved
from refine_latents import TINY, data_files, write_discs
from tiny_models import ENTRIES, tiny_generator
from workflow import ROOT


def on_accelerator(kind: str):
    """A tiny generator whose weights lie on the pretend accelerator; call it within `accelerator()`."""
    model = tiny_generator(kind)
    for part in (model.pipe.transformer, model.pipe.vae):
        moved(part)
    encode = model.pipe.encode_prompt

    def encoded(*args, **options):
        return [text if text is None else text.to(DEVICE) for text in encode(*args, **options)]

    model.pipe.encode_prompt = encoded
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
    texts = ["a", "b"], ["", ""], [0, 1]
    with accelerator() as device:
        latents = sample(on_accelerator("sd3"), *texts)
        assert latents.device == device
        latents = latents.cpu()
    torch.testing.assert_close(latents, sample(tiny_generator("sd3"), *texts))


@pytest.fixture
def calibration(tmp_path: Path, monkeypatch):
    """A function that calibrates a tiny model, which `sensitivity` then knows the config of, and returns the folder."""
    config = dict(tiny_generator("sd3").pipe.transformer.config)
    monkeypatch.setattr(calibrate_load, "transformer_config", lambda name, entry: config)

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
    settings = Sensitivity(bits=[4], probes=1, gradient_batch=8)

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
    data = data_files(write_discs(tmp_path / "shard-00000.tar"), tmp_path)
    codebook = tmp_path / "codebook.safetensors", tmp_path / "assignments.parquet"
    build_codebook(*data, *codebook, TINY)
    names = ("latent_mae.safetensors", "refiner.safetensors", "training.parquet", "training.timing.parquet")
    files = [tmp_path / name for name in names]
    for module in ("train", "diagnose"):
        monkeypatch.setattr(f"ditscope.refine.{module}.default_device", lambda: DEVICE.type, raising=False)
    monkeypatch.setattr("ditscope.refine.processes.default_device", lambda: DEVICE.type)
    able = "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], able, lambda: [DEVICE.type])
    monkeypatch.setattr(nn.Module, "to", lambda module, device: moved(module) if device == DEVICE else module)
    with accelerator():
        refine_train.train(*data, *codebook, *files, settings=TINY)
        judge = Judge(Adapter(None, None), pooled_by(read_encoder(files[0])))
        opened = open_dataset(*data)
        codes = refine_train.read_codes(codebook[1], opened)
        encoder = read_encoder(files[0])
        measured = refine_diagnose.measure(load_refiner(files[1]), opened, codes, encoder, judge, TINY)
    assert measured.diagnostics.height > 20 and measured.evaluation.height > 10


# Memory of backward passes -------------------------------------------------------------------------------------------


class FirstStep(Observer):
    """Keeps the noise and the conditioning that the first step is given."""

    def start(self, model, sigmas, cond, guidance):
        self.cond = cond

    def before(self, index, x):
        if index == 0:
            self.noise = x


def one_sample(model) -> Batch:
    seen = FirstStep()
    sample(model, ["a"], [""], [0], [seen])
    return Batch((), "early", seen.noise, torch.tensor(0.5), seen.cond, model.entry.guidance)


@pytest.mark.parametrize(("samples", "expected"), [(0.5, 1), (1.5, 1), (3.5, 3), (100, 8)])
def test_the_gradient_batch_follows_the_memory_of_the_machine(samples, expected, monkeypatch):
    model = tiny_generator("sd3")
    parts = (model.pipe.transformer, model.pipe.vae)
    weights = sum(p.nbytes for part in parts for p in part.parameters())
    kept = gradient_memory.kept_bytes(model, one_sample(model))
    memory = weights + int(samples * kept / gradient_memory.SHARE)
    monkeypatch.setattr(gradient_memory, "total_memory", lambda device: memory)
    assert gradient_memory.gradient_batch(model, one_sample(model)) == expected


def test_what_a_backward_pass_keeps_grows_with_the_tokens_and_leaves_out_the_weights():
    model = tiny_generator("sd3")
    small = one_sample(model)
    large = replace(small, x=torch.randn(1, 4, 32, 32), cond=small.cond)
    model.pipe.transformer.pos_embed.pos_embed_max_size = 16
    kept = [gradient_memory.kept_bytes(model, sample) for sample in (small, large)]
    tokens = small.x.shape[-1] ** 2 // 4
    widths = 32 * 3 * 4  # of three blocks, in bytes
    assert tokens * widths * 5 < kept[0] < tokens * widths * 200
    assert 3 < kept[1] / kept[0] < 17


def test_host_memory_is_that_of_the_control_group(tmp_path, monkeypatch):
    groups = tmp_path / "cgroup"
    (groups / "slurm/job_1").mkdir(parents=True)
    (groups / "slurm/memory.max").write_text("4000000\n")
    (groups / "slurm/job_1/memory.max").write_text("max\n")
    (tmp_path / "own").write_text("0::/slurm/job_1\n")
    monkeypatch.setattr(gradient_memory, "CGROUPS", groups)
    monkeypatch.setattr(gradient_memory, "OWN_CGROUP", tmp_path / "own")
    assert gradient_memory.total_memory(torch.device("cpu")) == 4_000_000
    monkeypatch.setattr(gradient_memory, "OWN_CGROUP", tmp_path / "none")
    assert gradient_memory.total_memory(torch.device("cpu")) == host_memory_bytes()


def test_decoding_image_by_image_and_block_by_block_leaves_the_gradient(monkeypatch):
    model = tiny_generator("sd3")
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    image = pictures(model, latents)
    (whole,) = torch.autograd.grad(image, latents, random_signs(image, torch.Generator().manual_seed(5)))
    generator = torch.Generator().manual_seed(5)
    checkpointed = []

    def watched(model, x):
        checkpointed.append(model.pipe.vae.is_gradient_checkpointing)
        return pictures(model, x)

    monkeypatch.setattr(sensitivity_image, "pictures", watched)
    parts = [pull_back_image(model, one, generator) for one in latents.split(1)]
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), whole)
    assert {values for values, _ in parts} == {image[0].numel()} and checkpointed == [True] * 3
    assert not model.pipe.vae.is_gradient_checkpointing


# The same bytes from every run ---------------------------------------------------------------------------------------


def test_deterministic_kernels_are_asked_for_on_cuda_alone_and_given_back(monkeypatch):
    monkeypatch.delenv(determinism.WORKSPACE, raising=False)
    with determinism.deterministic():
        assert not torch.are_deterministic_algorithms_enabled() and determinism.WORKSPACE not in os.environ
    monkeypatch.setattr(determinism, "on_cuda", lambda: True)
    with determinism.deterministic():
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        assert os.environ[determinism.WORKSPACE] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.delenv(determinism.WORKSPACE)


def test_stages_that_take_gradients_run_deterministic_kernels(calibration, tmp_path, monkeypatch):
    """With CUDA pretended, every backward pass of sensitivity and refiner finds the flag set; training may use TF32."""
    monkeypatch.setattr(determinism, "on_cuda", lambda: True)
    monkeypatch.setenv(determinism.WORKSPACE, ":4096:8")
    seen = []

    def noting(function):
        def call(*args, **kwargs):
            seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch.Tensor, "backward", noting(torch.Tensor.backward))
    monkeypatch.setattr(sensitivity_stage, "load_generator", lambda name, entry: tiny_generator("sd3"))
    out, settings = tmp_path / "layers.parquet", Sensitivity(bits=[4], probes=1, mode="fast")
    sensitivity_stage.sensitivity("tiny", ENTRIES["sd3"], calibration("sd3"), out, settings)
    assert seen and set(seen) == {(True, False)}
    seen.clear()
    data = data_files(write_discs(tmp_path / "shard-00000.tar"), tmp_path)
    codebook = tmp_path / "codebook.safetensors", tmp_path / "assignments.parquet"
    build_codebook(*data, *codebook, TINY)
    names = ("latent_mae.safetensors", "refiner.safetensors", "training.parquet", "training.timing.parquet")
    refine_train.train(*data, *codebook, *(tmp_path / name for name in names), settings=TINY)
    assert seen and set(seen) == {(True, True)}
    assert not torch.backends.cuda.matmul.allow_tf32


# Loading and cores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_weights_are_read_straight_to_the_device(family, monkeypatch):
    """The folder's pipeline is asked for on the device, without hooks, and has its weights as read through the host."""
    asked, folder = {}, ROOT / f"models/shapes-{family}"
    load = loading.load_pipeline

    def noting(name, entry, source, **options):
        asked.update(options)
        return load(name, entry, source, **options)

    monkeypatch.setattr(loading, "load_pipeline", noting)
    loaded = loading.load_generator("m", Model(family, str(folder), width=64, height=64), "cpu")
    assert asked["device_map"] == "cpu"
    plain = load("m", loaded.entry, folder)
    for name, part in plain.components.items():
        if isinstance(part, nn.Module):
            other = loaded.pipe.components[name]
            assert not any(hasattr(inner, "_hf_hook") for inner in other.modules()) and not other.training
            assert all(torch.equal(a, b) for a, b in zip(part.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("family", "encoders"), [("sd3", 3), ("flux", 2)])
def test_offload_keeps_the_encoders_in_host_memory_and_moves_the_rest_once(family, encoders):
    """Between calls the encoders' weights are on no device; what they compute, and the picture, stays."""
    entry = Model(family, str(ROOT / f"models/shapes-{family}"), width=64, height=64, steps=2)
    plain, offloaded = (loading.load_generator("m", entry, "cpu") for _ in range(2))
    keep_encoders_in_host_memory(offloaded.pipe, torch.device("cpu"))
    for _ in range(2):
        parts = {n: part for n, part in offloaded.pipe.components.items() if isinstance(part, nn.Module)}
        away = {n for n, part in parts.items() if next(part.parameters()).device.type == "meta"}
        assert away == {n for n in parts if n.startswith("text_encoder")} and len(away) == encoders
        for model in (plain, offloaded):
            model.encoded.clear()  # texts are encoded anew
        first, second = (sample(model, ["a red ring"], [""], [0]) for model in (plain, offloaded))
        assert torch.equal(first, second)


def test_slurm_gives_four_cores_with_each_gpu_and_threads_without():
    """By the executor's own reading of the profile; a timed job keeps the cores that it asks for."""
    from snakemake_executor_plugin_slurm.partitions import get_job_cpu_requirement

    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    given = dict(item.split("=") for item in profile["default-resources"])
    assert given["cpus_per_gpu"] == "4"

    def cores(threads: int, **resources):
        asked = {"cpus_per_gpu": int(given["cpus_per_gpu"])} | resources
        return get_job_cpu_requirement(SimpleNamespace(threads=threads, resources=asked))

    assert cores(1, gpu=1) == (4, "gpu")
    assert cores(1, gpu=0) == cores(1) == (1, "task")
    assert cores(16, gpu=1, cpus_per_task=16) == (16, "task")


# What is to be measured on real machines, at toy size ----------------------------------------------------------------


PREPARED = {
    "gpu.py": "versions; fp8 product; capture; batch 1 against 4; floor; scheme; base, all; fp8-dynamic-row, all; "
    "sampling twice; gradients twice; refiner; resident; offloaded",
    "mac.py": "versions; cpu, float32; gradients on cpu; gradients on mlx; mlx; sampling twice",
}


@pytest.mark.system
@pytest.mark.parametrize("script", PREPARED)
def test_prepared_measurements_run_at_toy_size(script, tmp_path):
    """Every row in its order, none of them failed: a reason is one of a machine without the device."""
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(ROOT / "perf" / script), "--toy", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = PREPARED[script].split("; ")
    places = [next(i for i, row in enumerate(rows) if row["row"].startswith(start)) for start in wanted]
    assert places == sorted(places)
    known = (
        "compute capability",
        "no accelerator",
        "no int8 kernel",
        "quantizes bfloat16 weights",
        "No module named 'mlx",
        "g++",
    )
    assert [r for r in rows if r.get("reason") and not any(text in r["reason"] for text in known)] == []
    assert all(row["equal"] for row in rows if "equal" in row) and sum("equal" in row for row in rows) >= 1
