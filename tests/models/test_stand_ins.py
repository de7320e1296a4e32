"""The stand-ins for hub models: whole folders that anyone's code loads and runs, of the real depth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

import stand_ins
from ditscope.config_files import read_config
from ditscope.models.captioners import caption, load_captioner
from ditscope.models.embedders.registry import load_embedder
from ditscope.models.registry import runs_remote_code
from workflow import ROOT, STUDIES

PROMPTS = ["a tabby cat asleep on a stack of newspapers", "a lighthouse on a cliff in heavy rain"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
FLUX = "black-forest-labs/FLUX.1-"
SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
SHIFTED = {"use_dynamic_shifting": True}
# Blocks by list, class of the scheduler, and some of its settings, as the hub repositories have them.
DENOISERS = {
    f"{FLUX}schnell": ({"transformer_blocks": 19, "single_transformer_blocks": 38}, {"use_dynamic_shifting": False}),
    f"{FLUX}dev": ({"transformer_blocks": 19, "single_transformer_blocks": 38}, {"use_dynamic_shifting": True}),
    f"{FLUX}Krea-dev": ({"transformer_blocks": 19, "single_transformer_blocks": 38}, {"use_dynamic_shifting": True}),
    SD3: ({"transformer_blocks": 24}, {"shift": 3.0}),
    "stabilityai/sdxl-turbo": ({"down_blocks": 3, "up_blocks": 3}, {"timestep_spacing": "trailing"}),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ({"blocks": 30}, {"flow_shift": 3.0, "use_flow_sigmas": True}),
    "black-forest-labs/FLUX.2-klein-4B": ({"transformer_blocks": 5, "single_transformer_blocks": 20}, SHIFTED),
    "Tongyi-MAI/Z-Image-Turbo": ({"noise_refiner": 2, "context_refiner": 2, "layers": 30}, {"shift": 3.0}),
}
DEEP = {  # of the same makers and makes as others: in the slower tier
    "black-forest-labs/FLUX.2-dev": ({"transformer_blocks": 8, "single_transformer_blocks": 48}, SHIFTED),
    "Qwen/Qwen-Image": ({"transformer_blocks": 60}, SHIFTED),
    "stabilityai/stable-diffusion-3.5-medium": ({"transformer_blocks": 24}, {"shift": 3.0}),
    "stabilityai/stable-diffusion-3.5-large": ({"transformer_blocks": 38}, {"shift": 3.0}),
    "lodestones/Chroma1-HD": ({"transformer_blocks": 19, "single_transformer_blocks": 38}, {}),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ({"blocks": 30}, {}),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": ({"blocks": 40}, {}),
    "Lightricks/LTX-Video": ({"transformer_blocks": 28}, {}),
}
CAPTIONERS = ("Salesforce/blip2-opt-2.7b", "florence-community/Florence-2-large")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a stand-in, saved when it is first asked for."""
    saved: dict[str, Path] = {}

    def of(source: str) -> Path:
        if source not in saved:
            saved[source] = stand_ins.save(source, tmp_path_factory.mktemp("stand_in") / "model")
        return saved[source]

    return of


@pytest.mark.parametrize("study", STUDIES)
def test_every_hub_model_of_every_study_has_a_stand_in(study):
    config = read_config([ROOT / "experiments" / f"{study}.yaml"])
    assert {entry.source for entry in stand_ins.hub_entries(config)} <= set(stand_ins.STAND_INS)


def test_every_hub_model_of_the_registry_has_a_stand_in_but_remote_code():
    config = read_config([])
    entries = [*config.models.values(), *config.embedders.values()]
    hub = {entry.source for entry in entries if entry.source and not (ROOT / entry.source).exists()}
    remote = {entry.source for entry in entries if runs_remote_code(entry)}
    assert hub - remote == set(stand_ins.STAND_INS) and len(remote) == 2


@pytest.mark.parametrize("name", ["blip-large", "blip2", "florence2", "qwen3-vl"])
def test_captioners_of_the_registry_say_the_same_in_any_batch(name, folder):
    """By the entry's own settings, in float32; a draw by its seed alone."""
    hub = read_config([]).models[name]
    entry = replace(hub, source=str(folder(hub.source)), revision="", dtype="float32", max_new_tokens=4)
    pictures = [PICTURE, PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for settings in (entry, replace(entry, temperature=1.0, top_p=0.9, num_beams=1)):
        captioner = load_captioner(name, settings, "cpu")
        together = caption(captioner, pictures, [1, 2])
        assert [caption(captioner, [p], [seed])[0] for seed, p in enumerate(pictures, 1)] == together
        assert all(together)


@pytest.mark.parametrize("name", ["mpnet", "nomic", "siglip2", "dinov2", "clip-large"])
def test_embedders_of_the_registry_give_unit_vectors_in_any_batch(name, folder):
    hub = read_config([]).embedders[name]
    embed = load_embedder(name, replace(hub, source=str(folder(hub.source)), revision=""), "cpu")
    flipped = PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    items = PROMPTS if hub.modality == "text" else [PICTURE, flipped]
    vectors = embed(items)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) and not np.allclose(*vectors, atol=1e-5)
    assert np.allclose(np.concatenate([embed([item]) for item in items]), vectors, atol=1e-5)


@pytest.mark.parametrize(
    "source",
    [*DENOISERS, *(pytest.param(source, marks=[pytest.mark.system, pytest.mark.long]) for source in DEEP)],
)
def test_a_generator_runs_by_its_own_call_and_has_the_hub_model_s_depth(source, folder):
    pipe = DiffusionPipeline.from_pretrained(folder(source), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    depths, schedule = (DENOISERS | DEEP)[source]
    assert {name: len(getattr(denoiser, name)) for name in depths} == depths
    assert {key: pipe.scheduler.config[key] for key in schedule} == schedule
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    options = {"num_frames": 9} if "Wan" in source or "LTX" in source else {}
    options |= {"max_sequence_length": 16} if "LTX" in source else {}  # its defaults are those of long texts
    made = pipe(
        prompt=PROMPTS, height=32, width=32, num_inference_steps=2, generator=seeds, output_type="np", **options
    )[0]
    assert np.isfinite(made).all()
    assert not np.array_equal(made[0], made[1])


def test_sd3_runs_without_t5(folder):
    pipe = DiffusionPipeline.from_pretrained(folder(SD3), dtype=torch.float32, text_encoder_3=None, tokenizer_3=None)
    assert np.isfinite(pipe(PROMPTS[0], height=32, width=32, num_inference_steps=1, output_type="np").images).all()


@pytest.mark.parametrize("source", CAPTIONERS)
def test_a_captioner_says_something(source, folder):
    model = AutoModelForImageTextToText.from_pretrained(folder(source), dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder(source))
    task = {"text": "<CAPTION>"} if "Florence" in source else {}
    tokens = model.generate(**processor(images=PICTURE, return_tensors="pt", **task), max_new_tokens=8)
    assert processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


def test_text_embedder_maps_texts_to_unit_vectors(folder):
    vectors = SentenceTransformer(str(folder("sentence-transformers/all-mpnet-base-v2")), device="cpu").encode(PROMPTS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) and not np.allclose(*vectors)


@pytest.mark.parametrize(
    "source", ["google/siglip2-base-patch16-224", "facebook/dinov2-base", "openai/clip-vit-large-patch14"]
)
def test_image_embedder_reads_pictures_of_any_size(source, folder):
    pixels = AutoImageProcessor.from_pretrained(folder(source))(images=PICTURE, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    model = AutoModel.from_pretrained(folder(source))
    features = getattr(model, "get_image_features", model)(pixel_values=pixels).pooler_output
    assert features.shape == (1, 32) and features.isfinite().all()
