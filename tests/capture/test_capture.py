"""Captures: exactness of the read-out, the files and what loads them, patterns, budgets, placement, restarts."""

import hashlib
import io
import json
import resource
import shutil
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import ExifTags, Image
from safetensors.torch import load_file

from ditscope.capture import recorder as recorder_module
from ditscope.capture import stage
from ditscope.capture import statistics as capture_statistics
from ditscope.capture.files import captures_in, read_metadata
from ditscope.capture.load import layout_bytes, load_capture
from ditscope.capture.recorder import Recorder
from ditscope.capture.settings import CaptureSet
from ditscope.capture.stage import capture, capture_run, read_out
from ditscope.capture.statistics import pool, pool_streams, to_host
from ditscope.capture.verify import verify
from ditscope.cli import main
from ditscope.core import tensor_files
from ditscope.core.errors import InputError
from ditscope.core.patterns import select_blocks, select_indices
from ditscope.core.tables import read_table
from ditscope.models import placement
from ditscope.models.families import flux, sd3
from ditscope.models.families.common import Conditioning
from ditscope.models.loading import Generator, load_generator
from ditscope.models.placement import load_across, place
from ditscope.models.requests import generate_slice
from ditscope.models.sampling import Observer, decode, sample
from ditscope.models.settings import Model

ROOT = Path(__file__).resolve().parents[2]
SHAPES_FLUX = Model("flux", str(ROOT / "models" / "shapes-flux"), width=64, height=64, steps=2)
CPU = torch.device("cpu")
RECORD = {
    "generation_id": "abcdefgh",
    "prompt_id": "p",
    "model": "tiny",
    "prompt": "a ring, café",
    "negative_prompt": "",
    "seed": 3,
    "position": 0,
}


def tiny(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Generator, Conditioning]:
    """A randomly initialised generator without text encoders, and the conditioning of one prompt."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        shift_factor=0.1,
        scaling_factor=0.5,
    )
    both = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 20}
    guidance = {"flux": 0.0, "flux-distilled": 3.5, "sd3": 1.0, "sd3-cfg": 3.0}[kind]
    if kind.startswith("flux"):
        family = flux
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=12,
            guidance_embeds=kind == "flux-distilled",
            axes_dims_rope=(4, 6, 6),
            **both,
        )
        pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, transformer)
    else:
        family = sd3
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            caption_projection_dim=32,
            pos_embed_max_size=8,
            **both,
        )
        pipe = StableDiffusion3Pipeline(transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae, *[None] * 6)
    for module in (transformer, vae):
        for parameter in module.parameters():  # fresh adaLN layers differ too little for a test to notice a mistake
            parameter.data = (parameter.data + 0.05 * torch.randn_like(parameter)).to(dtype)
        module.to(dtype).eval()
    name = str(dtype).removeprefix("torch.")
    entry = Model(kind.split("-")[0], "", dtype=name, width=16, height=16, steps=3, guidance=guidance)
    embeds, pooled = torch.randn(4, 5, 24).to(dtype), torch.randn(4, 20).to(dtype)
    negative = {"negative_embeds": embeds[1:2], "negative_pooled": pooled[1:2]} if kind == "sd3-cfg" else {}
    cond = Conditioning(embeds[:1], pooled[:1], **negative)
    pipe.encode_prompt = lambda *_, **__: encoded(pipe, cond)
    return Generator("tiny", entry, family, pipe, torch.device("cpu")), cond


def encoded(pipe, cond: Conditioning) -> tuple:
    """What the pipeline's `encode_prompt` returns, of this conditioning."""
    if isinstance(pipe, FluxPipeline):
        return cond.embeds, cond.pooled, torch.zeros(5, 3, dtype=cond.embeds.dtype)
    return cond.embeds, cond.negative_embeds, cond.pooled, cond.negative_pooled


def step_bytes(recorder: Recorder, model: Generator, cond: Conditioning) -> int:
    """Bytes of one captured step."""
    return layout_bytes(recorder.layout(model, (1, 4, 8, 8), cond), next(model.pipe.transformer.parameters()).dtype)


RUN = ["a ring"], [""], [3]


def record_run(kind: str, folder: Path, dtype=torch.float32, settings: CaptureSet = CaptureSet()) -> tuple:
    """Capture a tiny model's run; the generator, its conditioning, the recorder and the final latents."""
    model, cond = tiny(kind, dtype)
    blocks = select_blocks(settings.blocks, list(model.family.blocks(model.pipe.transformer)))
    recorder = Recorder(folder, blocks, select_indices(settings.steps, 3, "steps"), settings, RECORD)
    folder.mkdir(parents=True, exist_ok=True)
    return model, cond, recorder, sample(model, *RUN, [recorder])


class Velocities(Observer):
    """Keeps what the model predicted."""

    def __init__(self):
        self.steps = []

    def after(self, step):
        self.steps.append(step)


KINDS = ("flux", "flux-distilled", "sd3", "sd3-cfg")


@pytest.mark.parametrize("kind", KINDS)
def test_last_block_reads_out_as_the_models_own_velocity(kind, tmp_path):
    model, _, recorder, _ = record_run(kind, tmp_path)
    watcher = Velocities()
    sample(model, *RUN, [watcher])
    last, first = recorder.blocks[-1], recorder.blocks[0]
    for step, file in zip(watcher.steps, sorted(tmp_path.glob("*.safetensors")), strict=True):
        tensors = load_file(file)
        torch.testing.assert_close(tensors[f"{last}.prediction"], step.velocity, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(tensors[f"{first}.prediction"], step.velocity, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(tensors["context.latents"], step.x, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_tokens_alone_give_the_velocity_again(kind, tmp_path):
    """Tokens, temb and guidance in the file suffice: float64 layer norm, modulation and projection, by hand."""
    model, _, recorder, _ = record_run(kind, tmp_path)
    tensors = load_file(tmp_path / "step_001.safetensors")
    last, transformer = recorder.blocks[-1], model.pipe.transformer
    tokens = tensors[last][:, recorder.metadata()["txt_seq_len"] :] if last in tensors else tensors[f"{last}.img"]
    tokens, temb = tokens.double(), tensors["context.temb"].double()
    linear, out = transformer.norm_out.linear, transformer.proj_out
    scale, shift = (torch.nn.functional.silu(temb) @ linear.weight.double().T + linear.bias.double()).chunk(2, dim=1)
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    patches = (normed * (1 + scale[:, None]) + shift[:, None]) @ out.weight.double().T + out.bias.double()
    expected = torch.zeros(len(patches), 4, 8, 8, dtype=torch.float64)
    for token in range(16):
        row, column = 2 * (token // 4), 2 * (token % 4)
        patch = patches[:, token]
        order = (4, 2, 2) if kind.startswith("flux") else (2, 2, 4)
        patch = patch.reshape(-1, *order) if kind.startswith("flux") else patch.reshape(-1, *order).permute(0, 3, 1, 2)
        expected[:, :, row : row + 2, column : column + 2] = patch
    if kind == "sd3-cfg":
        expected = expected[1:] + 3.0 * (expected[:1] - expected[1:])
    torch.testing.assert_close(tensors["context.velocity"].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_capturing_leaves_the_latents_bit_identical(kind, tmp_path):
    model, _, _, latents = record_run(kind, tmp_path)
    assert torch.equal(latents, sample(model, *RUN))
    assert not any(m._forward_hooks for m in model.pipe.transformer.modules())


def test_streams_are_what_the_blocks_put_out(tmp_path):
    """Single blocks are joined text first; checked against hooks of the test's own."""
    model, _ = tiny("flux")
    seen = {}
    for i in (0, 11):
        block = model.pipe.transformer.single_transformer_blocks[i]
        block.register_forward_hook(lambda module, inputs, output, i=i: seen.setdefault(i, output))
    block = model.pipe.transformer.transformer_blocks[1]
    block.register_forward_hook(lambda module, inputs, output: seen.setdefault("double", output))
    recorder = Recorder(tmp_path, list(flux.blocks(model.pipe.transformer)), [0], CaptureSet(), RECORD)
    sample(model, *RUN, [recorder])
    tensors = load_file(tmp_path / "step_000.safetensors")
    for i in (0, 11):
        joined = tensors[f"single_block_{i}"]
        assert torch.equal(joined[:, :5], seen[i][0]) and torch.equal(joined[:, 5:], seen[i][1])
    assert seen["double"][0].shape[1] == 5  # diffusers returns the text first
    assert torch.equal(tensors["double_block_1.txt"], seen["double"][0])
    assert torch.equal(tensors["double_block_1.img"], seen["double"][1])


def test_guidance_stores_both_halves_and_the_last_joint_block_has_no_text(tmp_path):
    model, cond, *_ = record_run("sd3-cfg", tmp_path / "both")
    both = load_file(tmp_path / "both" / "step_000.safetensors")
    halves = (cond.embeds, cond.pooled), (cond.negative_embeds, cond.negative_pooled)
    for half, alone in enumerate(Conditioning(*pair) for pair in halves):
        folder = tmp_path / str(half)
        folder.mkdir()
        recorder = Recorder(folder, ["joint_block_1"], [0], CaptureSet(), RECORD)
        model.pipe.encode_prompt = lambda *_, **__: encoded(model.pipe, alone)  # noqa: B023
        sample(replace(model, encoded={}), *RUN, [recorder], guidance=1.0)
        one = load_file(folder / "step_000.safetensors")
        torch.testing.assert_close(both["joint_block_1.img"][half], one["joint_block_1.img"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both["joint_block_1.txt"][half], one["joint_block_1.txt"][0], rtol=1e-4, atol=1e-5)
    assert "joint_block_2.img" in both and "joint_block_2.txt" not in both


@pytest.mark.parametrize("store", ("tensors", "statistics"))
@pytest.mark.parametrize("decoded", (True, False))
@pytest.mark.parametrize(("kind", "dtype"), [("flux", "bfloat16"), ("sd3-cfg", "float32"), ("sd3", "bfloat16")])
def test_the_byte_estimate_is_exact_and_types_are_kept(kind, dtype, decoded, store, tmp_path):
    dtype = getattr(torch, dtype)
    settings = CaptureSet(store=store, should_decode_intermediates=decoded, steps="1")
    model, cond, recorder, _ = record_run(kind, tmp_path, dtype, settings)
    tensors = load_file(tmp_path / "step_001.safetensors")
    assert step_bytes(recorder, model, cond) == sum(t.nbytes for t in tensors.values())
    assert {t.dtype for t in tensors.values()} == {dtype}
    assert [p.name for p in tmp_path.iterdir()] == ["step_001.safetensors"]


def test_a_step_is_written_while_the_next_computes(tmp_path, monkeypatch):
    """The first file is not written before the second step's first block has run: a writer in line would wait here."""
    model, _ = tiny("flux")
    recorder = Recorder(tmp_path, ["double_block_0"], [0, 1, 2], CaptureSet(), RECORD)
    second, save, overlapped = threading.Event(), recorder_module.save_tensors, []

    def wait(tensors, path):
        overlapped.append(path.name != "step_000.safetensors" or second.wait(20))
        save(tensors, path)

    monkeypatch.setattr(recorder_module, "save_tensors", wait)
    block, calls = model.pipe.transformer.transformer_blocks[0], []
    block.register_forward_hook(lambda *_: (calls.append(1), len(calls) == 2 and second.set(), None)[-1])
    sample(model, *RUN, [recorder])
    assert overlapped == [True] * 3 and list(recorder.files) == [f"step_00{i}.safetensors" for i in range(3)]


def test_at_most_two_steps_are_in_memory(tmp_path, monkeypatch):
    """A slow disk: the step that is written and the one that is computed, and no other."""
    model, _ = tiny("flux")
    recorder = Recorder(tmp_path, list(flux.blocks(model.pipe.transformer)), [0, 1, 2], CaptureSet(), RECORD)
    alive, captured, save, most = weakref.WeakSet(), recorder_module.Captured, recorder_module.save_tensors, []

    def begin(*arguments):
        step = captured(*arguments)
        alive.add(step)
        most.append(len(alive))
        return step

    monkeypatch.setattr(recorder_module, "Captured", begin)
    monkeypatch.setattr(recorder_module, "save_tensors", lambda *step: (time.sleep(0.2), save(*step))[1])
    sample(model, *RUN, [recorder])
    assert most == [1, 2, 2] and not alive


def test_files_are_what_the_metadata_says(tmp_path):
    *_, recorder, _ = record_run("flux", tmp_path)
    assert len(recorder.files) == 3
    for name, about in recorder.files.items():
        data = (tmp_path / name).read_bytes()
        assert about == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


@pytest.mark.parametrize("failing", ("sampling", "writing"))
def test_what_fails_leaves_no_file_unfinished(failing, tmp_path, monkeypatch):
    model, _ = tiny("flux")
    recorder = Recorder(tmp_path, list(flux.blocks(model.pipe.transformer)), [0, 1, 2], CaptureSet(), RECORD)
    if failing == "sampling":
        block, calls = model.pipe.transformer.transformer_blocks[1], []
        block.register_forward_hook(lambda *_: calls.append(1) or (len(calls) == 3 and 1 / 0) or None)
    else:
        save = tensor_files.save_file

        def full(tensors, path, metadata):
            if path.name.startswith("step_001"):
                path.write_bytes(b"the first bytes")
                raise OSError(28, "No space left on device")
            save(tensors, path, metadata)

        monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(ZeroDivisionError if failing == "sampling" else OSError):
        sample(model, *RUN, [recorder])
    left = {p.name for p in tmp_path.iterdir()}
    assert left == set(recorder.files) <= {"step_000.safetensors", "step_001.safetensors"}


def test_a_copy_on_the_host_is_of_its_own():
    tensor = torch.ones(3)
    host = to_host(tensor)
    tensor += 1
    assert host.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ("flux", "sd3-cfg"))
def test_the_embedding_is_what_the_first_block_is_given(kind, tmp_path):
    """Run the first block by hand on it and on the stored modulation: its output is the stored one."""
    model, _, recorder, _ = record_run(kind, tmp_path)
    tensors = load_file(tmp_path / "step_001.safetensors")
    block = model.pipe.transformer.transformer_blocks[0]
    inputs = {"hidden_states": tensors["embedding.img"], "encoder_hidden_states": tensors["embedding.txt"]}
    if kind == "flux":
        ids = torch.cat(
            [torch.zeros(5, 3), FluxPipeline._prepare_latent_image_ids(1, 4, 4, torch.device("cpu"), torch.float32)]
        )
        inputs["image_rotary_emb"] = model.pipe.transformer.pos_embed(ids)
    with torch.no_grad():
        text, image = block(temb=tensors["context.temb"], **inputs)
    first = recorder.blocks[0]
    torch.testing.assert_close(image, tensors[f"{first}.img"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(text, tensors[f"{first}.txt"], rtol=1e-6, atol=1e-6)


def test_pooled_statistics_match_float64():
    tokens = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1)) * 3 + 1
    values, token_norms = pool(tokens)
    for row, token_norm, x in zip(values.numpy(), token_norms.numpy(), tokens.numpy().astype(np.float64), strict=True):
        norms = [np.sqrt((token**2).sum()) for token in x]
        np.testing.assert_allclose(token_norm, norms, rtol=1e-5)
        expected = [x.mean(), x.std(), np.sqrt((x**2).mean()), abs(x).max(), np.mean(norms)]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("limit", "order"), [(360, [(0, 2, 3), (1,)]), (240, [(0, 2), (3,), (1,)]), (1, [(0,), (2,), (3,), (1,)])]
)
def test_streams_pooled_together_are_those_pooled_alone(limit, order, monkeypatch):
    monkeypatch.setattr(capture_statistics, "TOGETHER_BYTES", limit)  # a stream of (2, 5, 3) takes 120 bytes
    draw = torch.Generator().manual_seed(4)
    shapes = [(2, 5, 3), (2, 4, 3), (2, 5, 3), (2, 5, 3)]
    streams = [(i, f"single_block_{i}", "img", torch.randn(shape, generator=draw)) for i, shape in enumerate(shapes)]
    groups = pool_streams(streams)
    together = {
        stream[:2]: (values, norms)
        for pooled in groups
        for stream, values, norms in zip(pooled.streams, pooled.values, pooled.norms, strict=True)
    }
    assert [tuple(step for step, *_ in pooled.streams) for pooled in groups] == order
    for step, block, _, tokens in streams:
        torch.testing.assert_close(together[step, block], pool(tokens), rtol=1e-6, atol=1e-7)


def test_the_statistics_table_describes_the_stored_tensors(tmp_path):
    _, _, recorder, _ = record_run("sd3-cfg", tmp_path)
    table = recorder.table()
    assert table.height == 3 * (3 + 2) * 2  # steps x streams (the last block has no text) x halves
    (row,) = table.filter(step=2, block="joint_block_1", stream="txt", half="uncond").to_dicts()
    tensor = load_file(tmp_path / "step_002.safetensors")["joint_block_1.txt"][1].double()
    assert row["absmax"] == pytest.approx(tensor.abs().max().item(), rel=1e-6)
    assert row["std"] == pytest.approx(tensor.std(correction=0).item(), rel=1e-5)
    assert row["token_norms"] == pytest.approx(tensor.norm(dim=1).tolist(), rel=1e-5)


def test_nan_stops_the_run_and_names_the_block(tmp_path):
    model, _ = tiny("flux")
    model.pipe.transformer.single_transformer_blocks[3].proj_out.bias.data[0] = float("nan")
    recorder = Recorder(tmp_path, ["double_block_0", "single_block_3"], [0], CaptureSet(), RECORD)
    with pytest.raises(FloatingPointError, match="single_block_3 put out NaN or Inf at step 0"):
        sample(model, *RUN, [recorder])
    assert not any(m._forward_hooks for m in model.pipe.transformer.modules())


def test_read_out_on_a_straight_path():
    """On x = (1 - s) x0 + s n with the true velocity n - x0 both read-outs have a closed form."""
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    x = 0.3 * x0 + 0.7 * noise
    torch.testing.assert_close(read_out("x0", x, noise - x0, 0.7, 0.5), x0)
    torch.testing.assert_close(read_out("x_prev", x, noise - x0, 0.7, 0.5), 0.5 * x0 + 0.5 * noise)


# One run's folder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Capture a tiny FLUX run into a generation folder; called with settings."""

    def make(kind="flux", name="abcdefgh", runs=1, **settings):
        model, _ = tiny(kind)
        chosen = CaptureSet(**settings)
        blocks = select_blocks(chosen.blocks, list(model.family.blocks(model.pipe.transformer)))
        out = tmp_path / name
        capture_run(model, RECORD, out, blocks, select_indices(chosen.steps, 3, "steps"), chosen, runs)
        return out

    return make


def test_layout_and_nested_structure(folder):
    out = folder(steps="0,-1", decode=["x0", "x_prev"])
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert {"img_0.jpg", "statistics.parquet", "intermediates/metadata.json"} <= names
    steps = [f"intermediates/{kind}/step_{step}" for kind in ("decoded", "decoded_x_prev") for step in (0, 2)]
    assert {f"{step}/single_block_{i}.jpg" for step in steps for i in range(12)} <= names
    assert {n for n in names if n.endswith("tensors")} == {f"intermediates/step_00{i}.safetensors" for i in (0, 2)}
    assert not any("step_1/" in n for n in names)
    data = load_capture(out)
    assert list(data["double_blocks"]) == ["block_0", "block_1"]
    assert list(data["single_blocks"]) == [f"block_{i}" for i in range(12)]  # numeric order: 2 before 10
    image, text = data["double_blocks"]["block_1"][1]
    assert image.shape == (1, 16, 32) and text.shape == (1, 5, 32)
    assert data["single_blocks"]["block_11"][0].shape == (1, 21, 32) and len(data["single_blocks"]["block_11"]) == 2
    context, sigmas = data["denoising_context"], data["metadata"]["sigmas"]
    assert context["timestep_pairs"] == [(sigmas[0], sigmas[1]), (sigmas[2], 0.0)]
    assert context["txt_seq_len"] == [5, 5]
    assert context["y"][0].shape == (1, 20) and context["img_state"][1].shape == (1, 4, 8, 8)
    assert data["metadata"]["prompt"] == "a ring, café" and data["metadata"]["num_steps"] == 3
    assert data["embedding"][0][0].shape == (1, 16, 32) and data["embedding"][1][1].shape == (1, 5, 32)
    assert data["metadata"]["decoded"] == ["x0", "x_prev"] and verify(out) == []


def test_the_decoded_picture_is_the_vae_of_the_clean_estimate(folder):
    out = folder(steps="1")
    data = load_capture(out)
    context = data["denoising_context"]
    clean = context["img_state"][0] - data["metadata"]["sigmas"][1] * context["velocity"][0]
    vae = tiny("flux")[0].pipe.vae
    with torch.no_grad():
        image = vae.decode(clean / 0.5 + 0.1).sample[0].permute(1, 2, 0)
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).numpy()
    drawn = np.asarray(Image.open(out / "intermediates/decoded/step_1/single_block_11.jpg"), float)
    assert np.abs(drawn - expected).mean() < 5  # JPEG
    other = np.asarray(Image.open(out / "intermediates/decoded/step_1/double_block_0.jpg"), float)
    assert np.abs(other - expected).mean() > 1.5 * np.abs(drawn - expected).mean()


def test_single_file_holds_the_same_nested_structure(folder):
    whole, single = folder(name="a"), folder(name="b", format="pt")
    (file,) = (single / "intermediates").glob("capture_*_tiny.pt")
    data, expected = torch.load(file, weights_only=True), load_capture(whole)
    assert not list((single / "intermediates").glob("*.safetensors"))
    assert type(data["double_blocks"]["block_0"]) is list and type(data["double_blocks"]["block_0"][0]) is tuple
    for step in range(3):
        assert torch.equal(data["double_blocks"]["block_0"][step][1], expected["double_blocks"]["block_0"][step][1])
        assert torch.equal(data["single_blocks"]["block_10"][step], expected["single_blocks"]["block_10"][step])
    assert data["denoising_context"]["timestep_pairs"] == expected["denoising_context"]["timestep_pairs"]
    assert data["metadata"]["prompt"] == "a ring, café"
    assert load_capture(single)["metadata"]["generation_id"] == "abcdefgh" and verify(single) == []


def test_single_file_of_the_original_program_and_damaged_ones(tmp_path):
    """The published structure: lists of (img, txt) and of joined tokens, one entry per step."""
    image, text, joined = torch.randn(1, 4, 8), torch.randn(1, 3, 8), torch.randn(1, 7, 8)
    context = {"y": [torch.randn(1, 5)], "img_state": [image], "timestep_pairs": [(1.0, 0.0)], "txt_seq_len": [3]}
    data = {"double_blocks": {"block_0": [(image, text)]}, "single_blocks": {"block_0": [joined]}}
    data |= {"denoising_context": context | {"guidance": 2.5}, "metadata": {"model": "flux-schnell", "num_steps": 1}}
    file = tmp_path / "capture_20250101_000000_flux-schnell.pt"
    torch.save(data, file)
    loaded = load_capture(file)
    assert (
        torch.equal(loaded["double_blocks"]["block_0"][0][1], text) and loaded["denoising_context"]["guidance"] == 2.5
    )
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"flux-schnell\.pt: truncated, or no capture of tensors alone"):
        load_capture(file)
    torch.save({"weights": joined}, file)
    with pytest.raises(InputError, match="no key `denoising_context`"):
        load_capture(file)
    torch.save({"denoising_context": Path("x")}, file)  # a pickle with a class in it is never executed
    with pytest.raises(InputError, match="tensors alone"):
        load_capture(file)


def test_statistics_only_keeps_no_tokens(folder):
    out = folder(store="statistics", blocks="single:*")
    assert not {"double_blocks", "single_blocks"} & set(load_capture(out))
    assert read_table(out / "statistics.parquet", "capture_statistics").height == 12 * 3 * 2
    assert (out / "intermediates/decoded/step_2/single_block_11.jpg").exists()
    assert not folder(name="n", should_decode_intermediates=False).joinpath("intermediates/decoded").exists()


def test_picture_carries_the_prompt_and_that_it_is_synthetic(folder):
    for kind in ("jpg", "png"):
        for wished in (True, False):
            out = folder(name=f"{kind}{wished}", image_format=kind, add_sampling_metadata=wished, steps="0")
            image = Image.open(out / f"img_0.{kind}")
            data = {ExifTags.Base(key).name: value for key, value in image.getexif().items()}
            assert data["Software"] == "ditscope;AI generated;txt2img" and data["Model"] == "tiny"
            assert ("ImageDescription" in data) == wished and ("a ring, café".encode() in image.info["exif"]) == wished
            if kind == "png":
                assert image.text.get("Description") == ("a ring, café" if wished else None)
                assert image.text["Software"] == data["Software"]
            assert verify(out) == []


def test_budget_is_refused_before_the_first_write(folder, tmp_path):
    spent = sum(t.nbytes for f in folder().glob("intermediates/*.safetensors") for t in load_file(f).values())
    folder(name="fits", runs=2, max_bytes=2 * spent)
    with pytest.raises(InputError, match=f"would take {2 * spent:,} bytes, more than max_bytes {2 * spent - 1:,}"):
        folder(name="over", runs=2, max_bytes=2 * spent - 1)
    assert not (tmp_path / "over").exists()


def test_damaged_files_are_named(folder):
    out = folder()
    file = out / "intermediates" / "step_001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert [*map(str, verify(out))] == [
        f"{file}: not the bytes that were captured (its sha256 differs); capture it again"
    ]
    (out / "intermediates" / "step_007.safetensors.partial").write_bytes(b"half")
    (out / "intermediates/decoded/step_0/double_block_0.jpg").write_bytes(b"no picture")
    (out / "intermediates" / "step_002.safetensors").unlink()
    (out / "img_0.jpg").unlink()
    named = [
        "step_001",
        "step_002.safetensors: missing",
        "step_007",
        "img_0.jpg or .png",
        "decoded/step_0/double_block_0",
    ]
    lines = verify(out)
    assert len(lines) == 5 and all(any(name in line for line in lines) for name in named)
    file.write_bytes(data[:-8])
    with pytest.raises(InputError, match=r"step_001\.safetensors: truncated"):
        load_capture(out)
    metadata = out / "intermediates" / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"schema_version": "0"}))
    with pytest.raises(InputError, match="schema version 0"):
        load_capture(out)
    assert len(verify(out)) == 1 and "schema version 0" in verify(out)[0]
    metadata.unlink()
    with pytest.raises(InputError, match="no finished capture"):
        load_capture(out)


@pytest.mark.parametrize("part", (0.2, 1.5))
def test_a_full_disk_leaves_nothing(part, folder, tmp_path):
    """The kernel refuses bytes beyond a limit, in the middle of the first file: one line, and nothing counts."""
    size = (folder() / "intermediates" / "step_000.safetensors").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(part * size), limits[1]))
    try:
        if part < 1:
            with pytest.raises(InputError, match=r"full: cannot be written .* the unfinished capture is removed"):
                folder(name="full")
        else:
            folder(name="full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "full").exists() == (part > 1)


def test_free_space_is_looked_at_before_the_first_write(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"would take [\d,]+ bytes, and .* has 1,000 free"):
        folder()
    assert not list(tmp_path.iterdir())


@pytest.mark.hardware
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_from_a_gpu_hold_its_data():
    stream = torch.cuda.Stream()
    for size in (1, 1000, 30_000_000):
        tensor = torch.arange(size, device="cuda", dtype=torch.float32).mul_(3)
        host = to_host(tensor, stream)
        stream.synchronize()
        assert host.is_pinned() and torch.equal(host, torch.arange(size, dtype=torch.float32) * 3)


# Patterns and placement -----------------------------------------------------------------------------------------------

FLUX_BLOCKS = [f"double_block_{i}" for i in range(19)] + [f"single_block_{i}" for i in range(38)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", FLUX_BLOCKS),
        ("double:0-5,single:*", FLUX_BLOCKS[:6] + FLUX_BLOCKS[19:]),
        ("single:-1, double", FLUX_BLOCKS[:19] + FLUX_BLOCKS[56:]),
        ("double:17-99", FLUX_BLOCKS[17:19]),
        ("single:-3--2", FLUX_BLOCKS[54:56]),
        ("*:0", ["double_block_0"]),
        ("single:10,single:2", ["single_block_2", "single_block_10"]),
    ],
)
def test_block_patterns(pattern, expected):
    assert select_blocks(pattern, FLUX_BLOCKS) == expected


@pytest.mark.parametrize("pattern", ["joint:*", "double:19", "tripple", "double:5-3", "double:x", "", "*,double:40"])
def test_a_pattern_that_matches_nothing_lists_the_blocks(pattern):
    with pytest.raises(InputError, match="matches no block; there are double:0-18, single:0-37"):
        select_blocks(pattern, FLUX_BLOCKS)


def test_step_patterns():
    assert select_indices("0,2,-1", 8, "steps") == [0, 2, 7]
    assert select_indices("*", 3, "steps") == [0, 1, 2]
    assert select_indices("5-9,-8", 8, "steps") == [0, 5, 6, 7]
    with pytest.raises(InputError, match="steps `0,8`: `8` matches nothing; there are 0-7"):
        select_indices("0,8", 8, "steps")


@pytest.mark.parametrize("gpus", range(1, 9))
def test_placement(gpus):
    places = place(placement.COMPONENTS, gpus)
    assert set(places) == set(placement.COMPONENTS) and all(0 <= gpu < gpus for gpu in places.values())
    alone = [gpu for component, gpu in places.items() if component != "transformer"]
    assert gpus == 1 or places["transformer"] not in alone
    assert len(set(places.values())) == min(gpus, 5)
    assert place(["transformer"], gpus) == {"transformer": places["transformer"]}


def test_placement_on_eight_gpus_is_the_published_one():
    assert place(placement.COMPONENTS, 8) == {"t5": 0, "clip": 1, "transformer": 2, "vae_encoder": 5, "vae_decoder": 6}
    with pytest.raises(InputError, match="no GPU is visible"):
        place(placement.COMPONENTS, 0)


# The stage on a shipped model -----------------------------------------------------------------------------------------


def test_spread_components_sample_like_one_device():
    devices = [torch.device("cpu")] * 8
    models = [load_generator("shapes-flux", SHAPES_FLUX, "cpu"), load_across("shapes-flux", SHAPES_FLUX, devices)]
    one, spread = (sample(m, ["a red ring"], [""], [1]) for m in models)
    assert torch.equal(one, spread)
    decoded = [decode(m, one) for m in models]
    assert torch.equal(*decoded)


@pytest.mark.parametrize(("name", "guidance"), [("shapes-flux", 0.0), ("shapes-sd3", 3.0), ("shapes-sd3", 1.0)])
def test_the_captured_image_is_the_generated_one(name, guidance, tmp_path):
    entry = replace(SHAPES_FLUX, family=name[7:], source=str(ROOT / "models" / name), guidance=guidance)
    settings = CaptureSet(image_format="png", should_decode_intermediates=False)
    capture(name, entry, tmp_path, prompt="a large red ring", seed=5, settings=settings)
    (out,) = captures_in(tmp_path)
    row = {"prompt_id": "p", "prompt": "a large red ring", "negative_prompt": "", "seed": 5, "derived_seed": False}
    (generated,) = generate_slice(load_generator(name, entry, "cpu"), [row])
    assert np.array_equal(Image.open(out / "img_0.png"), Image.open(io.BytesIO(generated["png"])))
    halves = 2 if guidance > 1 else 1
    blocks = load_capture(out)["joint_blocks" if name == "shapes-sd3" else "double_blocks"]
    assert blocks["block_0"][0][1].shape[0] == halves


def test_a_capture_spread_over_devices_is_the_same(tmp_path, monkeypatch):
    arguments = {"prompt": "a ring", "seed": 1, "settings": CaptureSet(multi_gpu=True)}
    monkeypatch.setattr(stage, "load_placed", lambda name, entry, **_: load_across(name, entry, [CPU] * 8))
    capture("shapes-flux", SHAPES_FLUX, tmp_path / "spread", **arguments)
    monkeypatch.undo()
    capture("shapes-flux", SHAPES_FLUX, tmp_path / "one", **arguments | {"settings": CaptureSet()})
    spread, one = contents(tmp_path / "spread"), contents(tmp_path / "one")
    assert spread == one and len(one) > 2


def contents(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_stage_layout_restart_and_rerun(tmp_path, monkeypatch):
    csv = tmp_path / "prompts.csv"
    csv.write_text("prompt_id,prompt\na,a small red ring\nb,a large blue star\nc,a green square\n")
    settings = CaptureSet(generations=2, blocks="double:0,single:-1", steps="0,-1")
    captured = []

    def fail_second(*arguments):
        captured.append(arguments)
        if len(captured) == 2:
            raise KeyboardInterrupt
        return capture_run(*arguments)

    monkeypatch.setattr(stage, "capture_run", fail_second)
    arguments = {"name": "shapes-flux", "model": SHAPES_FLUX, "prompts": [csv], "settings": settings}
    arguments["partial"] = tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt):
        capture(output_dir=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(stage, "load_placed", lambda *_, **__: exec("raise MemoryError"))
        capture(output_dir=tmp_path / "out", **arguments)
    capture(output_dir=tmp_path / "out", **arguments)
    assert len(captured) == 3  # the finished generation was not sampled again
    assert [read_metadata(g)["prompt_id"] for g in captures_in(tmp_path / "out")] == ["a", "b"]
    assert not list((tmp_path / "partial").glob("*"))
    capture(output_dir=tmp_path / "again", **arguments)
    first, second = (contents(tmp_path / name) for name in ("out", "again"))
    assert first == second and len(first) == 2 * (1 + 1 + 1 + 2 + 4)


def test_a_refused_capture_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="more than max_bytes 1,000"):
        capture("shapes-flux", SHAPES_FLUX, tmp_path / "out", prompt="a ring", settings=CaptureSet(max_bytes=1000))
    assert not list((tmp_path / "out").iterdir())


def test_one_prompt_from_the_command_line(tmp_path):
    settings = CaptureSet(should_decode_intermediates=False)
    sizes = {"num_steps": 3, "width": 32, "height": 48, "guidance": 2.5}
    capture("shapes-flux", SHAPES_FLUX, tmp_path, prompt="a ring", **sizes, settings=settings)
    (out,) = captures_in(tmp_path)
    metadata = read_metadata(out)
    assert (metadata["captured_steps"], metadata["width"], metadata["height"], metadata["guidance"]) == (
        [0, 1, 2],
        32,
        48,
        0.0,
    )
    assert metadata["derived_seed"] and len(out.name) == 8 and not (tmp_path / ".partial").exists()
    assert Image.open(out / "img_0.jpg").size == (32, 48)


def test_the_original_program_s_options_in_its_spellings(tmp_path, monkeypatch):
    """Every option of the published program, and of its visualiser, through the command line."""
    monkeypatch.chdir(ROOT)
    options = [
        "--width",
        "48",
        "--height",
        "32",
        "--prompt",
        "a ring",
        "--seed",
        "42",
        "--offload=False",
        "--multi_gpu",
    ]
    options += ["False", "--num_steps", "2", "--guidance", "1.5", "--output_dir", str(tmp_path)]
    options += ["--should_decode_intermediates=True", "--add_sampling_metadata", "False"]
    assert main(["capture", "--model", "shapes-flux", *options]) == 0
    (out,) = captures_in(tmp_path)
    expected = {
        "width": 48,
        "height": 32,
        "prompt": "a ring",
        "seed": 42,
        "num_steps": 2,
        "guidance": 0.0,
    }  # the model reads none
    assert read_metadata(out).items() >= expected.items() and verify(out) == []
    assert b"a ring" not in (out / "img_0.jpg").read_bytes()
    film = ["--generation_id", out.name, "--output_dir", str(tmp_path), "--output_format", "gif", "--fps", "4.0"]
    film += ["--block_type", "single", "--max_blocks", "3", "--font_size", "32"]
    assert main(["video", *film]) == 0
    with Image.open(out / f"visualization_{out.name}.gif") as drawn:
        assert drawn.n_frames == 2 * 3 + 1 and drawn.info["duration"] == 250
    assert main(["capture", "--model", "shapes-flux", *options, "--offload", "--multi_gpu"]) == 2


def test_bad_input_is_refused_before_anything_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "load_placed", lambda *a, **k: pytest.fail("a model was loaded"))

    def attempt(model=SHAPES_FLUX, prompt="a ring", output_dir=tmp_path / "out", settings=CaptureSet(), **more):
        capture("shapes-flux", model, output_dir, prompt=prompt, settings=settings, **more)

    for settings, message in (
        (CaptureSet(blocks="joint:*"), "matches no block; there are double:0-"),
        (CaptureSet(steps="7"), "there are 0-1"),
        (CaptureSet(decode=["x1"]), "`x1` is not a decode"),
        (CaptureSet(offload=True, multi_gpu=True), "exclude each other"),
    ):
        with pytest.raises(InputError, match=message):
            attempt(settings=settings)
    with pytest.raises(InputError, match="width: 65 is not a multiple of 16"):
        attempt(width=65)
    with pytest.raises(InputError, match="either `prompt` or `prompts`"):
        attempt(prompt="")
    with pytest.raises(InputError, match=r"is of the family `sdxl`, whose blocks cannot be read; .*: flux, sd3"):
        attempt(replace(SHAPES_FLUX, family="sdxl"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        attempt(output_dir=blocked / "out")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_offload_needs_an_accelerator(monkeypatch):
    monkeypatch.setattr(placement, "default_device", lambda: "cpu")
    with pytest.raises(InputError, match="no accelerator"):
        placement.load_placed("shapes-flux", SHAPES_FLUX, offload=True)
