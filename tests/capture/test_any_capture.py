"""Captures of any transformer: what the blocks put out, read out by the model's own tail and guidance."""

import numpy as np
import polars as pl
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from imageio_ffmpeg import count_frames_and_secs
from PIL import Image
from safetensors.torch import load_file

from any_pipelines import PIPELINES, SLOWER, save_tiny, tiny_generator
from ditscope.ablate.stage import Ablation
from ditscope.blocks.stage import stream_rows
from ditscope.capture.any_recorder import token_frames
from ditscope.capture.load import load_capture, tokens
from ditscope.capture.settings import CaptureSet
from ditscope.capture.stage import capture, capture_run, read_out
from ditscope.capture.verify import verify
from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.models.families import dit, flux, sd3
from ditscope.models.readout import BlockWatch, handing_on, replaced
from ditscope.models.sampling import Call, Observer, decode, sample, still, transformers_of
from ditscope.models.settings import Model
from ditscope.models.structure import blocks

FEW = ("flux2-klein", "z-image", "pixart-sigma", "wan")
STATEFUL = ("hunyuan-image",)  # adaptive projected guidance with momentum
CAPTURED = [name if name in FEW else pytest.param(name, marks=SLOWER) for name in PIPELINES]
FILMS = [name if name == "wan" else pytest.param(name, marks=SLOWER) for name, p in PIPELINES.items() if p.frames > 1]
RECORD = {
    "generation_id": "abcdefgh", "prompt_id": "p", "model": "tiny", "prompt": "a red ring", "negative_prompt": "dull",
    "seed": 3, "position": 0, "request_hash": "0",
}  # fmt: skip
RUN = ["a red ring"], ["dull"], [3]


class Hooked(Observer):
    """Copies of what every block puts out, by hooks of the test's own, and the steps."""

    def __init__(self):
        self.outputs, self.steps, self.handles = {}, [], []

    def start(self, model, sigmas, cond, guidance):
        def keep(name):
            def hook(module, args, output):
                several = output if isinstance(output, tuple) else (output,)
                copied = [t.clone() for t in several if t is not None]
                self.outputs.setdefault((name, len(self.steps)), []).append(copied)

            return hook

        self.handles = [
            module.register_forward_hook(keep(name))
            for transformer in transformers_of(model.pipe)
            for name, module in blocks(transformer).items()
        ]

    def after(self, step):
        self.steps.append(step)

    def stop(self):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CAPTURED)
def test_a_capture_changes_nothing_and_its_last_block_is_the_models_prediction(name, dtype, tmp_path):
    model, hooked = tiny_generator(name, dtype), Hooked()
    latents = sample(model, *RUN, [hooked])
    names = list(blocks(model.pipe.transformer))
    decoding = name not in STATEFUL
    settings = CaptureSet(should_decode_intermediates=decoding, decode=["x0", "x_prev"], image_format="png")
    captured = capture_run(model, RECORD, tmp_path / "g", names, [0, 2], settings)
    assert torch.equal(captured, latents)
    assert not any(module._forward_hooks for module in model.pipe.transformer.modules())
    drawn = np.asarray(Image.open(tmp_path / "g/img_0.png"))
    np.testing.assert_array_equal(drawn, still(decode(model, latents)[0].numpy()))
    for step in (0, 2):
        stored = load_file(tmp_path / f"g/intermediates/step_{step:03d}.safetensors")
        assert torch.equal(stored["context.latents"], hooked.steps[step].x)
        if decoding:
            assert torch.equal(stored[f"{names[-1]}.prediction"], hooked.steps[step].velocity)
            assert not torch.equal(stored[f"{names[0]}.prediction"], hooked.steps[step].velocity)
        for block in names:
            made = sorted(round(t.double().sum().item(), 6) for call in hooked.outputs[block, step] for t in call)
            kept = [t for key, t in stored.items() if key.startswith(f"{block}.") and "prediction" not in key]
            assert round(sum(made), 4) == pytest.approx(sum(t.double().sum().item() for t in kept), abs=1e-3)
            assert sum(t.numel() for t in kept) == sum(t.numel() for c in hooked.outputs[block, step] for t in c)


@pytest.mark.parametrize("name", CAPTURED)
def test_captures_are_read_back_as_halves_and_streams(name, tmp_path):
    model = tiny_generator(name)
    names = list(blocks(model.pipe.transformer))
    settings = CaptureSet(should_decode_intermediates=False, format="safetensors")
    capture_run(model, RECORD, tmp_path / "g", names, [0, 1, 2], settings)
    capture = load_capture(tmp_path / "g")
    table = read_table(tmp_path / "g/statistics.parquet", "capture_statistics")
    assert set(table.select("step", "block").rows()) == {(s, b) for s in range(3) for b in names}
    for row in table.filter(step=1).to_dicts():
        streams = tokens(capture, row["block"], 1)
        half = streams[row["stream"]][("cond", "uncond").index(row["half"])]
        assert half.ndim == 2 and len(half) == row["tokens"]
        assert row["rms"] == pytest.approx(half.double().square().mean().sqrt().item(), rel=1e-4)
        np.testing.assert_allclose(row["token_norms"], half.norm(dim=1).numpy(), rtol=1e-4)
    rows = {key: [] for key in ("similarity", "residual", "text_drift")}
    stream_rows(capture, dict(table.select("block", "depth").rows()), rows)
    first = (
        {next(b for b in names if s in tokens(capture, b, 1)) for s in ("img", "txt")} if "txt" in streams else set()
    )
    assert set(names) - {r["block"] for r in rows["residual"]} <= first  # the embedding is what the very first is given
    similarity = pl.DataFrame(rows["similarity"])
    assert similarity["cosine"].is_between(-1, 1).all() and similarity["linear_cka"].is_between(0, 1 + 1e-9).all()


@pytest.mark.parametrize("name", ["flux", "sd3", "sd35-medium"])
def test_read_outs_are_the_explicit_projections(name, tmp_path):
    """`norm_out` and `proj_out` by hand, for every block, as the modules of FLUX.1 and SD3 do it."""
    model, given = tiny_generator(name), {}
    transformer, names = model.pipe.transformer, list(blocks(model.pipe.transformer))
    transformer.time_text_embed.register_forward_hook(lambda m, a, o: given.setdefault(len(given), o))
    settings = CaptureSet(should_decode_intermediates=True, decode=["x0"])
    capture_run(model, RECORD, tmp_path / "g", names, [0], settings)
    stored = load_file(tmp_path / "g/intermediates/step_000.safetensors")
    family, latents = (flux, torch.zeros(1, 4, 8, 8)) if name == "flux" else (sd3, torch.zeros(1, 4, 8, 8))
    for block in names:
        image = stored[f"{block}.img"]
        temb = given[0] if len(image) == 1 else torch.cat(given[0].chunk(2)[::-1])
        with torch.no_grad():
            out = family.project(transformer, image, temb, latents)
        if len(out) == 2:
            out = out[1:] + model.entry.guidance * (out[:1] - out[1:])
        out = flux.pack(out) if name == "flux" else out
        torch.testing.assert_close(stored[f"{block}.prediction"], out, rtol=1e-5, atol=1e-5)


def test_read_outs_of_schedulers_that_keep_the_variance_are_their_own_clean_estimates():
    model, seen = tiny_generator("pixart-sigma"), Hooked()
    sample(model, *RUN, [seen])
    scheduler = model.pipe.scheduler
    for step in seen.steps:
        own = scheduler.step(step.velocity, step.timestep, step.x)
        ours = read_out("x0", step.x, step.velocity, float(step.sigma), float(step.sigma_next), "epsilon")
        torch.testing.assert_close(ours, own.pred_original_sample, rtol=1e-3, atol=1e-3)
    model.pipe.scheduler, solver = DPMSolverMultistepScheduler(), Hooked()
    sample(model, *RUN, [solver])
    scheduler = model.pipe.scheduler
    for step in solver.steps:
        scheduler._step_index = step.index
        own = scheduler.convert_model_output(step.velocity, sample=step.x)
        ours = read_out("x0", step.x, step.velocity, float(step.sigma), float(step.sigma_next), "epsilon")
        torch.testing.assert_close(ours, own, rtol=1e-3, atol=1e-3)


# Films ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILMS)
def test_films_are_captured_per_frame(name, tmp_path):
    model = tiny_generator(name)
    names = list(blocks(model.pipe.transformer))
    record = RECORD | {"frames": model.entry.frames, "runs": [{"prompt_id": "p"}]}
    latents = capture_run(model, record, tmp_path / "g", names, [0, 2], CaptureSet(image_format="png"))
    frames = decode(model, latents)[0].numpy()
    assert (tmp_path / "g/img_0.mp4").read_bytes() == dit.film(frames)
    assert film_frames(tmp_path / "g/img_0.mp4") == len(frames) == model.entry.frames
    capture, table = load_capture(tmp_path / "g"), read_table(tmp_path / "g/frames.parquet", "capture_frames")
    count = capture["metadata"]["latent_frames"]
    assert count > 1 and set(table.select("step", "block").rows()) == {(s, b) for s in (0, 2) for b in names}
    assert table.group_by("step", "block", "half").len()["len"].unique().to_list() == [count]
    for row in table.to_dicts():
        image = tokens(capture, row["block"], (0, 2).index(row["step"]))["img"][("cond", "uncond").index(row["half"])]
        image = image.double().unflatten(0, (count, -1))
        now = image[row["frame"]]
        norms = now.norm(dim=1)
        own = [now.mean(), now.std(correction=0), now.square().mean().sqrt(), now.abs().max(), norms.mean()]
        told = [row[key] for key in ("mean", "std", "rms", "absmax", "mean_token_norm")]
        np.testing.assert_allclose(told, torch.stack(own).numpy(), rtol=1e-4, atol=1e-6)
        assert row["tokens"] == len(now) and (row["cosine_to_previous"] is None) == (row["frame"] == 0)
        if row["frame"]:
            before = image[row["frame"] - 1]
            cosine = ((now * before).sum(1) / (norms * before.norm(dim=1))).mean()
            assert row["cosine_to_previous"] == pytest.approx(cosine.item(), abs=1e-5)
    decoded = tmp_path / "g/intermediates/decoded/step_2"
    assert {p.name for p in decoded.iterdir()} == {f"{b}.{kind}" for b in names for kind in ("jpg", "mp4")}
    assert film_frames(decoded / f"{names[0]}.mp4") == model.entry.frames and not verify(tmp_path / "g")
    (decoded / f"{names[0]}.mp4").write_bytes((decoded / f"{names[0]}.mp4").read_bytes()[:-9])
    assert ["not an MP4 file" in fault for fault in verify(tmp_path / "g")] == [True]


def film_frames(path):
    return count_frames_and_secs(path)[0]


@pytest.mark.parametrize("name", FILMS)
def test_image_tokens_are_of_one_frame_after_the_other(name):
    """What the first block is given changes in the tokens of a latent frame that is changed, and in no others."""
    model, calls = tiny_generator(name), []

    class Keep(Observer):
        def called(self, call):
            calls.append(call)

    sample(model, *RUN, [Keep()], steps=2)
    call = calls[0]
    watch = BlockWatch(name, call.transformer)

    def embedded(latents):
        options = call.options
        args = call.args
        if args:
            args = (latents, *args[1:])
        else:
            options = options | {"hidden_states": latents}
        changed = Call(call.transformer, 0, 0, 1, "", args, options, call.forward)
        watch.begin(changed)
        with torch.no_grad():
            return watch.end(changed.run()).given["img"]

    given = call.latents
    first = embedded(given)
    count = token_frames(call, first.shape[1])
    for frame in range(count):
        latents = given.clone()
        if given.ndim == 3:  # LTX: tokens already
            latents.unflatten(1, (count, -1))[:, frame] += 1
        else:
            latents[(slice(None),) * (1 if name == "cogvideox" else 2) + (frame,)] += 1
        changed = (embedded(latents) - first).abs().unflatten(1, (count, -1)).amax((0, 2, 3))
        assert [bool(x > 0) for x in changed] == [f == frame for f in range(count)]
    watch.stop()


@pytest.mark.parametrize("boundary, ran", [(0.875, ["transformer", "transformer_2", "transformer_2"]),
                                           (0.1, ["transformer"] * 3)])  # fmt: skip
def test_of_two_transformers_the_one_that_runs_is_captured(boundary, ran, tmp_path):
    model = tiny_generator("wan22")
    model.pipe.register_to_config(boundary_ratio=boundary)
    names = list(blocks(model.pipe.transformer))
    capture_run(model, RECORD, tmp_path / "g", names, [0, 1, 2], CaptureSet())
    capture = load_capture(tmp_path / "g")
    assert capture["metadata"]["transformers"] == ran
    seen = Hooked()
    sample(model, *RUN, [seen])
    for step in range(3):
        stored = load_file(tmp_path / f"g/intermediates/step_{step:03d}.safetensors")
        assert torch.equal(stored[f"{names[-1]}.prediction"], seen.steps[step].velocity)


# What is refused ----------------------------------------------------------------------------------------------------


def refused(model, tmp_path, match, settings=CaptureSet(), steps=(0, 1, 2)):
    names = list(blocks(model.pipe.transformer))
    with pytest.raises(InputError, match=match) as caught:
        capture_run(model, RECORD, tmp_path / "g", names, list(steps), settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "g").exists()


def test_two_transformers_of_unlike_blocks_are_refused(tmp_path):
    model = tiny_generator("wan22")
    del model.pipe.transformer_2.blocks[-1]
    refused(model, tmp_path, r"its two transformers have not the same blocks \(2 and 1\)")


def test_guidance_with_a_memory_is_refused_for_read_outs_alone(tmp_path):
    refused(tiny_generator("hunyuan-image"), tmp_path, r"its guidance keeps a state .*seen at step 2")


def test_a_scheduler_whose_clean_estimate_is_unknown_is_refused(tmp_path):
    model = tiny_generator("pixart-sigma")
    model.pipe.scheduler = EulerDiscreteScheduler(prediction_type="v_prediction")
    refused(model, tmp_path, "the clean estimate of EulerDiscreteScheduler is not known")


def test_a_block_that_returns_a_dataclass_is_refused(tmp_path):
    model = tiny_generator("z-image")
    block = model.pipe.transformer.layers[1]
    own = block.forward
    block.forward = lambda *args, **options: DataClass(own(*args, **options))
    refused(model, tmp_path, "main_block_1: .* returns .*DataClass")


class DataClass:
    """What no block of diffusers returns."""

    def __init__(self, sample):
        self.sample = sample


def test_blocks_that_change_places_are_refused(tmp_path):
    model, calls = tiny_generator("wan"), []
    transformer = model.pipe.transformer
    own = transformer.forward

    def forward(*args, **options):
        calls.append(1)
        if len(calls) == 3:  # the first of the second step
            transformer.blocks = torch.nn.ModuleList(list(transformer.blocks)[::-1])
        return own(*args, **options)

    transformer.forward = forward
    settings = CaptureSet(should_decode_intermediates=False)
    refused(model, tmp_path, "in another order at step 1 than at step 0", settings)


def test_a_budget_is_refused_before_anything_is_written(tmp_path):
    refused(tiny_generator("z-image"), tmp_path, "capture would take .* more than max_bytes", CaptureSet(max_bytes=10))


# Ablation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CAPTURED if "wan22" not in getattr(name, "values", ())])
def test_a_block_that_is_skipped_is_one_whose_forward_hands_on_what_it_is_given(name):
    model = tiny_generator(name)
    own = sample(model, *RUN)
    block = list(blocks(model.pipe.transformer))[-1]
    skipped = sample(model, *RUN, [Ablation(block, "skip", [0, 1, 2])])
    assert not torch.equal(skipped, own) and torch.equal(sample(model, *RUN), own)
    module, watcher = blocks(model.pipe.transformer)[block], BlockWatch(name, model.pipe.transformer)
    described = watcher.described[block]

    class Learning(Observer):
        def called(self, call):
            watcher.begin(call)

        def answered(self, call, output):
            watcher.end(output)

    sample(model, *RUN, [Learning()], steps=2)
    watcher.stop()
    described = next(b for b in watcher.trace.blocks if b.name == block)
    with replaced({module: handing_on(described, module)}):
        torch.testing.assert_close(sample(model, *RUN), skipped, rtol=1e-5, atol=1e-5)


def test_the_stage_captures_a_model_from_its_folder_by_running_number(tmp_path):
    about = PIPELINES["z-image"]
    entry = Model(
        "dit", str(save_tiny("z-image", tmp_path / "m")), width=about.size, height=about.size, steps=2,
        guidance=about.guidance, max_sequence_length=about.length,
    )  # fmt: skip
    (tmp_path / "p.csv").write_text("prompt,negative_prompt,seed\na red ring,dull,3\n")
    settings = CaptureSet(blocks="0,-1", steps="-1", format="pt")
    capture("m", entry, tmp_path / "out", prompts=[tmp_path / "p.csv"], settings=settings)
    (folder,) = (tmp_path / "out").iterdir()
    loaded = load_capture(folder)
    assert loaded["metadata"]["captured_blocks"] == ["noise_refiner_block_0", "main_block_2"]
    assert set(loaded["predictions"]) == {"noise_refiner_block_0", "main_block_2"}
    assert sorted(p.name for p in (folder / "intermediates/decoded/step_1").iterdir()) == [
        "main_block_2.jpg", "noise_refiner_block_0.jpg",
    ]  # fmt: skip
    assert not verify(folder)
