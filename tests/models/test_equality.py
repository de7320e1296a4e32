"""Pictures are those of the pipelines' own `__call__`, bit for bit: every type, scheduler and guidance of a family."""

import inspect
from dataclasses import dataclass, field, replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ditscope.models.families.common import Conditioning
from ditscope.models.loading import load_generator
from ditscope.models.registry import ANY, FAMILIES
from ditscope.models.sampling import Observer, decode, pictures, predict, sample
from ditscope.models.settings import Model
from tiny_pipelines import save_random_flux, save_random_sd3, save_tiny_sdxl, save_tiny_wan

PROMPTS, SEEDS = ["a small red ring at the left", "a large blue star"], [3, 2**40]
SAVED = {"flux": save_random_flux, "sd3": save_random_sd3, "sdxl": save_tiny_sdxl, "wan": save_tiny_wan}
SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
DYNAMIC = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, **SHIFT)
SHIFTED = FlowMatchEulerDiscreteScheduler(shift=3.0)
UNIPC = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Case:
    """How one checkpoint of the hub is sampled."""

    family: str
    scheduler: object
    negatives: tuple[str, str] = ("", "")
    entry: dict = field(default_factory=dict)  # beside the family's own
    call: dict = field(default_factory=dict)  # what the reference is called with beside it

    @property
    def guidance(self) -> dict:
        return {"guidance_scale": self.entry["guidance"]} if "guidance" in self.entry else {}


GIVEN = ("blurred", "a dull square")
TRUE_CFG = {"true_cfg_scale": 4.0}
SKIP = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.7}
CASES = {
    "FLUX.1-dev": Case("flux", DYNAMIC, entry={"guidance": 2.5}),
    "FLUX.1-dev, default guidance": Case("flux", DYNAMIC, GIVEN),
    "FLUX.1-schnell": Case("flux", FlowMatchEulerDiscreteScheduler(shift=1.0), entry={"guidance": 0.0}),
    "FLUX.1, true guidance": Case("flux", DYNAMIC, GIVEN, {"call": TRUE_CFG}, TRUE_CFG),
    "SD3, default guidance": Case("sd3", SHIFTED),
    "SD3, negatives": Case("sd3", SHIFTED, GIVEN, {"guidance": 4.0}),
    "SD3, guidance off": Case("sd3", SHIFTED, GIVEN, {"guidance": 1.0}),
    "SD3, dynamic shift": Case("sd3", DYNAMIC, ("", "a dull square"), {"guidance": 4.0}),
    "SD3 without T5": Case("sd3", SHIFTED, GIVEN, {"use_t5": False, "max_sequence_length": 0}),
    "SD3.5-medium, layers skipped": Case("sd3", SHIFTED, entry={"guidance": 4.0, "call": SKIP}, call=SKIP),
    "SDXL-Turbo": Case(
        "sdxl", EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **LINEAR), entry={"guidance": 0.0}
    ),
    "SDXL, negatives": Case("sdxl", EulerDiscreteScheduler(timestep_spacing="leading", **LINEAR), GIVEN),
    "SDXL, no negatives": Case("sdxl", EulerDiscreteScheduler(steps_offset=1, **LINEAR)),
    "Wan": Case(
        "wan", UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    ),
    "Wan, negatives": Case("wan", SHIFTED, GIVEN, {"guidance": 3.0, "frames": 1}),
    "Wan, guidance off": Case("wan", SHIFTED, GIVEN, {"guidance": 1.0}),
}
ENTRIES = {
    "flux": {"width": 32, "height": 48, "max_sequence_length": 24},
    "sd3": {"width": 32, "height": 32, "max_sequence_length": 24},
    "sdxl": {"width": 64, "height": 64},
    "wan": {"width": 32, "height": 32, "frames": 5, "max_sequence_length": 24},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save(tmp_path_factory.mktemp(family)) for family, save in SAVED.items()}


def loaded(case: Case, folders, dtype: str, **changes):
    """Our generator and the plain pipeline of a case, both with its scheduler."""
    entry = Model(case.family, str(folders[case.family]), dtype=dtype, steps=3, **ENTRIES[case.family] | case.entry)
    model = load_generator("m", replace(entry, **changes), "cpu")
    kind, types = getattr(torch, dtype), {}
    if case.family == "wan":  # as its makers load it
        types = {"dtype": {"default": kind, "vae": torch.float32}}
    parts = {} if entry.use_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = getattr(diffusers, FAMILIES[case.family].pipeline)
    plain = pipeline.from_pretrained(folders[case.family], **{"dtype": kind} | types, **parts)
    plain.set_progress_bar_config(disable=True)
    for pipe in (model.pipe, plain):
        pipe.scheduler = type(case.scheduler).from_config(case.scheduler.config)
    return model, plain


def reference(plain, case: Case, entry: Model, output: str):
    """What the pipeline's `__call__` makes of the same prompts."""
    own = {"num_frames": entry.frames} if case.family == "wan" else {}
    if entry.max_sequence_length:
        own["max_sequence_length"] = entry.max_sequence_length
    negatives = list(case.negatives) if any(case.negatives) else None
    return plain(
        PROMPTS, negative_prompt=negatives, width=entry.width, height=entry.height, num_inference_steps=3,
        generator=[torch.Generator("cpu").manual_seed(s) for s in SEEDS], output_type=output, return_dict=False,
        **own, **case.guidance, **case.call,
    )[0]  # fmt: skip


class Watcher(Observer):
    """Keeps every event."""

    def __init__(self):
        self.steps, self.given, self.stopped = [], [], 0

    def start(self, model, sigmas, cond, guidance):
        self.sigmas, self.cond = sigmas, cond

    def before(self, index, x):
        self.given.append((index, x))

    def after(self, step):
        self.steps.append(step)

    def stop(self):
        self.stopped += 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_latents_and_pictures_are_those_of_plain_call(name, dtype, folders):
    case = CASES[name]
    model, plain = loaded(case, folders, dtype)
    expected = reference(plain, case, model.entry, "latent")
    ours = sample(model, PROMPTS, case.negatives, SEEDS)
    watcher = Watcher()
    assert torch.equal(sample(model, PROMPTS, case.negatives, SEEDS, [watcher]), ours)
    assert [i for i, _ in watcher.given] == [s.index for s in watcher.steps] == [0, 1, 2] and watcher.stopped == 1
    assert torch.equal(watcher.steps[-1].x_next, ours)
    for step, following in zip(watcher.steps[:-1], watcher.steps[1:], strict=True):
        assert torch.equal(step.x_next.to(following.x), following.x) and step.sigma > step.sigma_next
    unpacked = model.family.unpack(expected, 24, 16) if case.family == "flux" else expected
    assert ours.dtype == expected.dtype and torch.equal(ours, unpacked)
    pixels = np.asarray(reference(plain, case, model.entry, "np"), np.float32)
    decoded = pictures(model, ours).detach().float().movedim(1, -1).numpy().reshape(pixels.shape)
    np.testing.assert_array_equal(decoded, pixels)
    drawn = [np.asarray(image) for image in np.ravel(reference(plain, case, model.entry, "pil"))] if (
        case.family != "wan") else (pixels * 255).round().astype(np.uint8)  # fmt: skip
    np.testing.assert_array_equal(decode(model, ours).numpy().reshape(np.shape(drawn)), drawn)


@pytest.mark.parametrize("name", ["FLUX.1-dev", "SD3, negatives", "SD3, guidance off", "SD3, dynamic shift"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_predictions_of_recorded_steps_are_those_of_the_run(name, dtype, folders):
    model, _ = loaded(CASES[name], folders, dtype)
    watcher = Watcher()
    sample(model, PROMPTS, CASES[name].negatives, SEEDS, [watcher])
    for step in watcher.steps:
        with torch.no_grad():
            velocity = predict(model, step.x, step.sigma, watcher.cond, model.entry.guidance)
        assert torch.equal(velocity, step.velocity)


def test_predictions_and_pictures_have_gradients(folders):
    model, _ = loaded(CASES["SD3, guidance off"], folders, "float32")
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    cond = Conditioning(torch.randn(1, 7, 32), torch.randn(1, 32))
    (gradient,) = torch.autograd.grad(predict(model, x, torch.tensor(0.5), cond, 1.0).sum(), x)
    assert gradient.abs().max() > 0
    (gradient,) = torch.autograd.grad(pictures(model, x).sum(), x)
    assert gradient.abs().max() > 0


def test_a_vae_alone_decodes_as_the_pipeline(folders):
    for name in ("FLUX.1-dev", "SD3, negatives", "SDXL, negatives", "Wan"):
        model, _ = loaded(CASES[name], folders, "float32")
        latents = sample(model, PROMPTS, ["", ""], SEEDS)
        assert torch.equal(model.family.decode(model.pipe, latents), pictures(model, latents)), name


def test_texts_are_encoded_once(folders):
    model, _ = loaded(CASES["SD3, negatives"], folders, "float32")
    calls, encoder = [], model.pipe.text_encoder_3
    encoder.register_forward_hook(lambda *_: calls.append(1))
    for seeds in ([0, 1], [2, 3]):
        sample(model, PROMPTS, ["", "dull"], seeds)
    assert len(calls) == 2  # the prompts and the negative ones
    sample(model, PROMPTS[::-1], ["", "dull"], seeds)
    assert len(calls) == 4


def test_rows_with_and_without_a_negative_prompt_do_not_change_each_other(folders):
    """SDXL takes zeros where no negative prompt is given, for the whole call."""
    model, _ = loaded(CASES["SDXL, negatives"], folders, "float32")
    mixed = sample(model, [*PROMPTS, "a ring"], ["dull", "", "red"], [1, 2, 3])
    for row, (prompt, negative) in enumerate(zip([*PROMPTS, "a ring"], ["dull", "", "red"], strict=True)):
        alone = sample(model, [prompt], [negative], [row + 1])
        torch.testing.assert_close(mixed[row], alone[0], rtol=1e-4, atol=1e-4)


def test_default_guidance_is_that_of_the_pipelines():
    for facts in (facts for facts in FAMILIES.values() if facts.pipeline not in ("", ANY)):
        pipeline = getattr(diffusers, facts.pipeline)
        assert facts.guidance == inspect.signature(pipeline.__call__).parameters["guidance_scale"].default
