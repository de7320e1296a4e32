"""Every pipeline of the installed diffusers is driven or refused with its reason, and the page says so."""

import inspect
import re

import pytest

import any_pipelines
from ditscope.core.errors import InputError
from ditscope.models.hardware import installed
from ditscope.models.loading import load_pipeline
from ditscope.models.pipelines import pipelines, verdicts
from ditscope.models.settings import Model
from ditscope.workflow.pipelines_page import page
from workflow import ROOT

# Families that must be driven, and pipelines whose reason is known from their documentation.
MUST = (
    "Flux", "Flux2", "Flux2Klein", "StableDiffusion3", "QwenImage", "ZImage", "Chroma", "Sana", "PixArtSigma",
    "Lumina2", "HunyuanImage", "AuraFlow", "CogView4", "Wan", "LTX", "CogVideoX", "HunyuanVideo", "Mochi",
    "HiDreamImage",
)  # fmt: skip
REFUSED = {
    "StableDiffusion": "U-Net", "StableDiffusionXL": "family: sdxl", "FluxModular": "modular", "StableAudio": "sound",
    "LTX2": "sound beside the film", "FluxImg2Img": "picture or film", "WanImageToVideo": r"given \(`image`\)",
    "QwenImageEdit": "picture or film", "DiT": "takes no text", "FluxControlNet": "controlled by a picture",
    "StableCascadePrior": "no transformer", "OmniGen": "no `encode_prompt`", "FluxFill": r"given \(`image`\)",
    "SkyReelsV2DiffusionForcing": "calls no `scheduler.step`", "HeliosPyramid": "number of steps",
    "StableDiffusion3PAG": "changes attention", "WanVACE": "given", "SanaSprintImg2Img": "given",
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """All verdicts, once: diffusers imports 300 modules for it, some 10 seconds."""
    return verdicts()


def test_every_pipeline_has_a_verdict(found):
    assert len(found) > 300 and list(found) == list(pipelines())
    assert all(isinstance(reason, str) and len(reason) < 120 for reason in found.values())
    assert 40 < sum(not reason for reason in found.values()) < 80


@pytest.mark.parametrize("name", MUST)
def test_families_that_must_be_driven(found, name):
    assert found[f"{name}Pipeline"] == ""


@pytest.mark.parametrize("name", REFUSED)
def test_reasons(found, name):
    assert re.search(REFUSED[name], found[f"{name}Pipeline"])


def test_what_is_driven_can_be_called_with_a_text_alone(found):
    """By the signatures: nothing else is required, and no pipeline for editing is among them."""
    for name in (name for name, reason in found.items() if not reason):
        taken = inspect.signature(pipelines()[name].__call__).parameters
        required = {n for n, p in taken.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        assert required <= {"self", "prompt"}, name
        assert {"prompt", "generator", "output_type", "num_inference_steps"} <= set(taken), name


def test_what_the_tests_drive_is_driven(found):
    """The tiny pipelines that are sampled, captured and scored for real."""
    built = {type(tiny.build()).__name__ for tiny in any_pipelines.PIPELINES.values()}
    assert len(built) >= 20 and not {name: found[name] for name in built if found[name]}


def test_a_pipeline_that_is_not_driven_is_refused_before_it_loads(tmp_path):
    entry = Model("dit", str(tmp_path))
    for name, reason in (
        ("StableAudio", "makes sound"),
        ("FluxFill", "starts from a picture"),
        ("DiT", "takes no text"),
    ):
        (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{name}Pipeline"}}')
        with pytest.raises(InputError, match=rf"^models.mine.family: `dit` does not drive {name}Pipeline: {reason}"):
            load_pipeline("mine", entry, tmp_path)


def test_the_page_is_up_to_date(found):
    assert (ROOT / "docs" / "pipelines.md").read_text() == page(found, installed("diffusers")), "run `make docs`"
    assert re.search(r"^## Driven: \d+$", page(found, "0"), re.M) and "StableDiffusionXL" in page(found, "0")
