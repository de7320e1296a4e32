"""Model folders and entries that cannot be used: one line each that says what to do; what a model does not read."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.capture.stage import capture
from ditscope.config import load_config
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.core.patterns import select_blocks
from ditscope.models.block_names import HUB, block_names
from ditscope.models.folders import resolve_source, source_folder
from ditscope.models.loading import available, load_generator, settled
from ditscope.models.requests import prompt_tokens, request_key, request_of
from ditscope.models.sampling import sample
from ditscope.models.settings import Model
from tiny_pipelines import save_random_flux, save_random_sd3
from workflow import ROOT


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_random_flux(tmp_path_factory.mktemp("flux")), save_random_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a FLUX pipeline's folder to spoil."""
    return shutil.copytree(saved[0], tmp_path / "model")


def only_variant(folder):
    for file in list(folder.rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))


def no_index(folder):
    (folder / "model_index.json").unlink()


def single_file(folder):
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    shutil.copy(weights, folder / "flux1-dev.safetensors")
    for part in list(folder.iterdir()):
        if part.is_dir():
            shutil.rmtree(part)
    (folder / "model_index.json").unlink()


def other_family(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusion3Pipeline"}))


def unknown_family(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "SanaPipeline"}))


def dangling(folder):
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.unlink()
    os.symlink("../../blobs/0123abcd", weights)


def pickles_beside(folder):
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(b"pickle")


def pickles_alone(folder):
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae/diffusion_pytorch_model.bin")


def damaged_index(folder):
    (folder / "model_index.json").write_text("{")


SPOILED = {
    only_variant: r"only the variant `fp16` of these weights is here; rename the file to \w+\.safetensors",
    no_index: r"has no model_index\.json; it is no pipeline of diffusers: save the whole pipeline",
    single_file: r"has no model_index\.json; flux1-dev\.safetensors is a single-file checkpoint: save the whole",
    other_family: r"is a StableDiffusion3Pipeline, `flux` a FluxPipeline; set `family: sd3`",
    unknown_family: r"is a SanaPipeline, `flux` a FluxPipeline; families: flux, sd3, sdxl, wan",
    dangling: r"vae/.*: a link to \.\./\.\./blobs/0123abcd, which is not there; copy or download the file",
    pickles_beside: r"\.bin: pickled weights are refused; move it elsewhere, safetensors lie beside it",
    pickles_alone: r"\.bin: pickled weights are refused; convert the model to safetensors",
    damaged_index: r"model_index\.json: not a config in JSON .*; fetch or copy it again",
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_folder_that_cannot_be_used_gets_one_line(spoil, folder):
    spoil(folder)
    with pytest.raises(InputError, match=SPOILED[spoil]) as caught:
        load_generator("m", Model("flux", str(folder), width=32, height=32), "cpu")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_as_source_and_a_picture_too_large_get_one_line(saved, tmp_path):
    (tmp_path / "flux1-dev.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"flux1-dev\.safetensors"):
        resolve_source("m", Model("flux", str(tmp_path / "flux1-dev.safetensors")))
    sd3 = Model("sd3", str(saved[1]), width=32, height=48)
    with pytest.raises(InputError, match=r"models\.m\.height: 48 is more than the 32 pixels .*; take at most 32"):
        load_generator("m", sd3, "cpu")


def test_a_home_folder_is_found(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(saved[0], tmp_path / "models/tiny")
    entry = Model("flux", "~/models/tiny", width=32, height=32)
    assert source_folder(entry) == tmp_path / "models/tiny"
    assert load_generator("m", entry, "cpu").name == "m"
    assert request_of("m", entry, ROW)["weights"]


@pytest.mark.parametrize("device", ["cuda:99", "mps:7", "gpu"])
def test_a_device_that_is_not_there_gets_one_line(device):
    with pytest.raises(InputError, match=f"device `{device}`: not on this machine .*; here: ") as caught:
        available(device)
    assert len(str(caught.value).splitlines()) == 1


# `call` and settings that a model does not read ---------------------------------------------------------------------

ROW = {"prompt_id": "p", "prompt": "a ring", "negative_prompt": "", "seed": 1, "derived_seed": False}


def key(entry: Model, **row) -> str:
    return request_key(request_of("m", entry, ROW | row))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"true_cfg": 4.0}, r"models\.m\.call: FluxPipeline takes no `true_cfg`; it takes true_cfg_scale"),
        ({"guidance_scale": 4.0}, r"models\.m\.call: `guidance_scale` is no option of `call`; other settings give it"),
    ],
)
def test_arguments_that_a_pipeline_does_not_take_are_refused(call, message, saved):
    with pytest.raises(InputError, match=message):
        load_generator("m", Model("flux", str(saved[0]), width=32, height=32, call=call), "cpu")


def test_call_is_read_from_the_config_and_hashed():
    data = {"family": "flux", "source": "x", "call": {"true_cfg_scale": 4.0, "sigmas": [1.0, 0.5]}}
    entry = load_config({"experiment": "x", "models": {"m": data}}).models["m"]
    assert entry.call == data["call"]
    assert len({key(entry), key(replace(entry, call={})), key(replace(entry, call={"true_cfg_scale": 5.0}))}) == 3


def test_what_a_model_does_not_read_is_no_part_of_the_request(saved, tmp_path):
    schnell = save_random_flux(tmp_path / "schnell", guidance_embeds=False)
    dev, schnell = Model("flux", str(saved[0])), Model("flux", str(schnell))
    assert (settled(dev).guidance, settled(schnell).guidance) == (3.5, 0.0)
    assert key(dev) == key(replace(dev, guidance=3.5)) != key(replace(dev, guidance=0.0))
    assert key(schnell) == key(replace(schnell, guidance=2.5))
    assert key(dev) == key(dev, negative_prompt="dull")
    true = replace(dev, call={"true_cfg_scale": 4.0})
    assert key(true) != key(true, negative_prompt="dull")
    sd3 = Model("sd3", str(saved[1]))
    assert settled(sd3).guidance == 7.0 and key(sd3) != key(sd3, negative_prompt="dull")
    assert key(replace(sd3, guidance=1.0)) == key(replace(sd3, guidance=1.0), negative_prompt="dull")
    assert request_of("m", dev, ROW | {"negative_prompt": "dull"})["negative_prompt"] == ""


@pytest.mark.parametrize("stage", ["capture", "calibrate"])
def test_pipelines_that_call_their_transformer_twice_are_refused(stage, saved, tmp_path):
    entry = Model("flux", str(saved[0]), width=32, height=32, steps=2, call={"true_cfg_scale": 4.0})
    (tmp_path / "prompts.csv").write_text("prompt\na ring\n")
    with pytest.raises(InputError, match="calls the transformer more than once per step") as refused:
        if stage == "capture":
            capture("m", entry, tmp_path / "out", prompt="a ring")
        else:
            calibrate("m", entry, tmp_path / "prompts.csv", tmp_path / "out", Calibrate(num_images=1))
    assert "\n" not in str(refused.value)
    assert not any(p.is_file() and ".partial" not in p.parts for p in (tmp_path / "out").rglob("*"))


# Text lengths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "t5"), [(0, True), (24, True), (0, False)])
def test_the_encoder_and_the_record_share_one_text_length(length, t5, saved):
    entry = Model("sd3", str(saved[1]), width=32, height=32, steps=1, max_sequence_length=length, use_t5=t5)
    model = load_generator("m", entry, "cpu")
    encoder = model.pipe.text_encoder_3 if t5 else model.pipe.text_encoder
    tokenizer, read = model.pipe.tokenizer_3 if t5 else model.pipe.tokenizer, []
    encoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    sample(model, ["a ring"], [""], [0])
    limit = read[0]
    assert limit == (length or min(256, tokenizer.model_max_length))
    for words in (1, limit, 2 * limit):
        count, cut = prompt_tokens(model, "a " * words)
        assert cut == (count > limit) and count == len(tokenizer("a " * words).input_ids)
    assert cut


def test_without_a_t5_its_zeros_have_the_pipelines_length(saved):
    model = load_generator("m", Model("sd3", str(saved[1]), width=32, height=32, steps=1, use_t5=False), "cpu")
    sample(model, ["a ring"], [""], [0])
    (encoded,) = model.encoded.values()
    assert encoded[0].shape[1] == 256 + model.pipe.tokenizer.model_max_length
    assert torch.equal(encoded[0][:, -256:], torch.zeros(1, 256, 32))


# Patterns of blocks ---------------------------------------------------------------------------------------------------


def test_a_number_belongs_to_the_type_before_it():
    blocks = [f"double_block_{i}" for i in range(19)] + [f"single_block_{i}" for i in range(38)]
    chosen = select_blocks("double:0,9,18,single:0,19,37", blocks)
    assert chosen == [f"{kind}_block_{i}" for kind, n in (("double", (0, 9, 18)), ("single", (0, 19, 37))) for i in n]
    assert select_blocks("single:-1,0-1", blocks) == ["single_block_0", "single_block_1", "single_block_37"]
    assert select_blocks("9,-1", blocks) == ["double_block_9", "single_block_37"]  # without a type: of all, as they run
    for pattern in ("57", "9,x", "double:0,19", "double:0,x"):
        with pytest.raises(InputError, match="matches no block; there are double:0-18, single:0-37"):
            select_blocks(pattern, blocks)


@pytest.mark.parametrize("source", HUB)
def test_patterns_for_hub_models_are_checked_before_a_download(source):
    family = "flux" if "FLUX" in source else "sd3"
    last = HUB[source]["num_layers"] - 1
    kind = {"flux": "double", "sd3": "joint"}[family]
    entry = {"family": family, "source": source, "revision": "0" * 40, "steps": 4}
    data = {"experiment": "x", "models": {"m": entry}, "capture": {"models": ["m"], "sets": {"s": {}}}}
    data["ablate"] = {"models": ["m"]}

    def checked(**changes):
        load_config(data | {k: data.get(k, {}) | v for k, v in changes.items()})

    right = {"blocks": f"{kind}:{last},0", "steps": "3"}
    checked(ablate={"blocks": f"{kind}:0,{last}"}, capture={"sets": {"s": right}})
    with pytest.raises(InputError, match=rf"^ablate\.blocks \(model `m`\) .*: `{last + 1}` matches no block"):
        checked(ablate={"blocks": f"{kind}:0,{last + 1}"})
    with pytest.raises(InputError, match=r"^capture\.sets\.s\.blocks \(model `m`\) `triple`"):
        checked(capture={"sets": {"s": {"blocks": "triple"}}})
    with pytest.raises(InputError, match=r"^capture\.sets\.s\.steps \(model `m`\) `0,4`: `4` matches nothing"):
        checked(capture={"sets": {"s": {"steps": "0,4"}}})
    with pytest.raises(InputError, match=r"^ablate\.steps \(model `m`\) `9`"):
        checked(ablate={"steps": "9"})
    with pytest.raises(InputError, match=r"^calibrate\.statistics \(model `m`\) `9`"):
        checked(calibrate={"models": ["m"], "num_steps": 4, "statistics": "9"})


def test_names_of_blocks_are_those_of_the_network(saved):
    for folder, family, names in (
        (saved[0], "flux", ["double_block_0", "single_block_0", "single_block_1"]),
        (saved[1], "sd3", ["joint_block_0", "joint_block_1", "joint_block_2"]),
    ):
        entry = Model(family, str(folder), width=32, height=32)
        model = load_generator("m", entry, "cpu")
        assert block_names("m", entry) == list(model.family.blocks(model.pipe.transformer)) == names


@pytest.mark.parametrize("study", sorted(p.stem for p in (ROOT / "experiments").glob("*.yaml")))
def test_patterns_of_the_overlays_match(study, monkeypatch):
    monkeypatch.chdir(ROOT)
    read_config([ROOT / f"experiments/{study}.yaml"])
