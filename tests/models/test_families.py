"""Families beyond FLUX and SD3, on random weights: SDXL, which generates only, and the videos of Wan."""

import io
from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from ditscope.benchmark.settings import Benchmark
from ditscope.benchmark.stage import benchmark
from ditscope.calibrate.stage import calibrate
from ditscope.config import load_config
from ditscope.core.errors import InputError
from ditscope.core.shards import read_tar
from ditscope.core.tables import read_table
from ditscope.generate.settings import Generate
from ditscope.generate.stage import generate
from ditscope.models.loading import load_generator
from ditscope.models.registry import FAMILIES, family_of
from ditscope.models.sampling import Observer, decode, sample
from ditscope.models.settings import Model, Scheme
from ditscope.trajectories.invocations import Request, node_of
from ditscope.trajectories.networks import Entry
from tiny_pipelines import save_tiny_sdxl, save_tiny_wan

PROMPTS = ["a small red ring at the left", "a large blue star"]


@pytest.fixture(scope="module")
def sdxl_entry(tmp_path_factory):
    return Model(
        "sdxl", str(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))), width=64, height=64, steps=3, guidance=0.0
    )


@pytest.fixture(scope="module")
def sdxl(sdxl_entry):
    return load_generator("turbo", sdxl_entry, "cpu")


@pytest.fixture(scope="module")
def wan_entry(tmp_path_factory):
    source = str(save_tiny_wan(tmp_path_factory.mktemp("wan")))
    return Model("wan", source, width=32, height=32, frames=5, steps=3, guidance=4.0, max_sequence_length=16)


@pytest.fixture(scope="module")
def wan(wan_entry):
    return load_generator("wan", wan_entry, "cpu")


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.csv"
    path.write_text("prompt,seed\n" + "".join(f"{p},{i}\n" for i, p in enumerate(PROMPTS)))
    return path


# SDXL ---------------------------------------------------------------------------------------------------------------


def test_sdxl_does_not_depend_on_the_batch_and_repeats(sdxl):
    asked = [*PROMPTS, PROMPTS[0]], [""] * 3, [0, 1, 2]
    together = sample(sdxl, *asked)
    alone = torch.cat([sample(sdxl, *([values[i]] for values in asked)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(sample(sdxl, *asked), together)


def test_sdxl_generates_and_walks_trajectories_by_the_same_door(sdxl_entry, csv, tmp_path):
    generate("turbo", sdxl_entry, csv, tmp_path / "a.tar", settings=Generate(slice_size=1))
    generate("turbo", sdxl_entry, csv, tmp_path / "b.tar", settings=Generate(slice_size=2))
    one, two = (
        [np.asarray(Image.open(io.BytesIO(s["png"]))) for s in read_tar(tmp_path / f)] for f in ("a.tar", "b.tar")
    )
    for a, b in zip(one, two, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1  # rounding of a batched matrix product
    assert read_table(tmp_path / "a.parquet", "images")["prompt"].to_list() == PROMPTS
    node = node_of(Entry("turbo", "turbo", sdxl_entry), None)
    requests = [Request(node.ask(p, i, ""), p, i, "") for i, p in enumerate(PROMPTS)]
    answers = node.load()(requests)
    for answer, image in zip(answers, two, strict=True):
        np.testing.assert_array_equal(answer.state, image)
    quantized = node_of(Entry("turbo:int8", "turbo", sdxl_entry, "int8", Scheme("int8-weight-only")), None)
    changed = quantized.load()(requests)
    assert any((a.state != b.state).any() for a, b in zip(answers, changed, strict=True)), "the U-Net is quantized"


# Wan ----------------------------------------------------------------------------------------------------------------


def test_wan_is_observed_and_does_not_depend_on_the_batch(wan):
    seen = []

    class Recorder(Observer):
        def after(self, step):
            seen.append(step.velocity.shape)

    together = sample(wan, PROMPTS, [""] * 2, [0, 1], [Recorder()])
    assert seen == [(2, 16, 2, 4, 4)] * 3
    alone = torch.cat([sample(wan, PROMPTS[i : i + 1], [""], [i]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_a_video_is_an_mp4_beside_its_middle_frame(wan, wan_entry, csv, tmp_path):
    for name in "ab":
        generate("wan", wan_entry, csv, tmp_path / f"{name}.tar", settings=Generate(slice_size=2))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    samples = list(read_tar(tmp_path / "a.tar"))
    assert [sorted(s) for s in samples] == [["__key__", "json", "latent.npy", "mp4", "png"]] * 2
    for sample_ in samples:
        assert sample_["latent.npy"].shape == (16, 2, 4, 4)
        assert sample_["json"]["frames"] == 5
        frames = decode(wan, torch.from_numpy(sample_["latent.npy"])[None])[0].numpy()
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample_["png"]))), frames[2])
        film = tmp_path / "film.mp4"
        film.write_bytes(sample_["mp4"])
        reader = imageio_ffmpeg.read_frames(film)
        about = next(reader)
        shown = [np.frombuffer(frame, np.uint8).reshape(32, 32, 3) for frame in reader]
        assert (len(shown), about["fps"], about["size"]) == (5, 16.0, (32, 32))
        assert np.abs(np.stack(shown).astype(int) - frames).mean() < 40  # lossy, of noise
    generate("wan", replace(wan_entry, frames=1), csv, tmp_path / "still.tar")
    still = list(read_tar(tmp_path / "still.tar"))
    assert [sorted(s) for s in still] == [["__key__", "json", "latent.npy", "png"]] * 2
    assert {s["__key__"] for s in still}.isdisjoint(s["__key__"] for s in samples)


@pytest.mark.parametrize("entry", ["sdxl_entry", "wan_entry"])
def test_benchmarks_by_the_same_door(entry, csv, tmp_path, request):
    """Latency, memory, images and noise on a flat field of the base and of a quantized network."""
    settings = Benchmark(batches=[2], repeats=1, warmup=0, num_images=2, flat_field_steps=[2], flat_field_seeds=2)
    schemes = {"base": Scheme("base"), "int8": Scheme("int8-weight-only")}
    images = {}
    for config in schemes:
        benchmark("m", request.getfixturevalue(entry), schemes, {}, tmp_path, [csv], config, settings=settings)
        run = read_table(tmp_path / f"{config}-eager.parquet", "benchmark.run").row(0, named=True)
        assert (run["reason"], run["images"]) == ("", 2)
        assert (run["quantized_layers"] > 0) == (config == "int8")
        timing = read_table(tmp_path / f"{config}-eager.timing.parquet", "benchmark.run.timing")
        assert timing["latency_median_ms"][0] > 0
        flat = read_table(tmp_path / f"{config}-eager.flat.parquet", "benchmark.run.flat")
        assert flat["noise"].is_finite().all()
        images[config] = run["images_sha256"]
    assert images["base"] != images["int8"]


# What is refused ----------------------------------------------------------------------------------------------------


def test_the_families_with_blocks_are_those_that_can_read_them():
    for family, facts in FAMILIES.items():
        module = family_of("x", Model(family, "x"))
        explicit = hasattr(module, "project") and hasattr(module, "block_streams")
        assert bool(facts.blocks) == (explicit or hasattr(module, "AS_HELD"))


@pytest.mark.parametrize("stage", ["capture", "ablate", "calibrate", "sensitivity"])
@pytest.mark.parametrize("family", ["sdxl", "wan", "blip"])
def test_stages_that_need_blocks_refuse_other_families_when_the_config_is_read(stage, family):
    config = {"experiment": "x", "models": {"m": {"family": family, "source": "m"}}, stage: {"models": ["m"]}}
    message = rf"^{stage}.models: `m` is of the family `{family}`, whose blocks cannot be read; .*: flux, sd3, dit$"
    with pytest.raises(InputError, match=message):
        load_config(config)


def test_stages_that_need_blocks_refuse_other_families_without_the_workflow(tmp_path):
    from ditscope.sensitivity.stage import sensitivity

    entry = Model("sdxl", "nowhere")
    with pytest.raises(InputError, match="calibrate: `m` is of the family `sdxl`"):
        calibrate("m", entry, tmp_path / "none.csv", tmp_path / "out")
    with pytest.raises(InputError, match="sensitivity: `m` is of the family `sdxl`"):
        sensitivity("m", entry, tmp_path / "none", tmp_path / "out.parquet")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "frames", "message"),
    [
        ("flux", 5, r"models.m.frames: `flux` makes images, so 1; families of videos: wan, dit"),
        ("wan", 16, r"models.m.frames: 16 is not 4 n \+ 1, as the VAE decodes; take 17"),
        ("wan", 0, r"models.m.frames: 0 is not 4 n \+ 1, as the VAE decodes; take 1"),
    ],
)
def test_frames_that_no_model_makes_are_refused(family, frames, message):
    with pytest.raises(InputError, match=message):
        load_config({"experiment": "x", "models": {"m": {"family": family, "source": "m", "frames": frames}}})
    with pytest.raises(InputError, match=r"models\.m\.frames"):
        load_generator("m", Model(family, "nowhere", frames=frames))
