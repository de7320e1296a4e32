"""Any diffusion transformer: tiny pipelines of many families, each driven, observed and decoded as its own `__call__`.

The families that differ most are tested always, all of them in the slower tier.
"""

import json

import numpy as np
import pytest
import torch

from any_pipelines import PIPELINES, SLOWER, plain, save_tiny, tiny_generator
from ditscope.core.errors import InputError
from ditscope.core.shards import read_tar
from ditscope.generate.settings import Generate
from ditscope.generate.stage import generate
from ditscope.models.loading import load_generator
from ditscope.models.sampling import Observer, pictures, sample
from ditscope.models.settings import Model

FEW = ("flux2-klein", "z-image", "pixart-sigma", "wan")  # two calls per step; lists of latents; no sigmas; videos
ALL = [name if name in FEW else pytest.param(name, marks=SLOWER) for name in PIPELINES]
DTYPES = (torch.float32, torch.bfloat16)
RUN = ["a red ring", "a blue star"], ["dull", "blurred"], [3, 4]


class Watcher(Observer):
    """Keeps every event."""

    def __init__(self):
        self.calls, self.outputs, self.steps = [], [], []

    def start(self, model, sigmas, cond, guidance):
        self.sigmas = sigmas

    def called(self, call):
        self.calls.append(call)

    def answered(self, call, output):
        self.outputs.append(output)

    def after(self, step):
        self.steps.append(step)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_pictures_are_those_of_plain_call_with_and_without_observers(name, dtype):
    model, watcher = tiny_generator(name, dtype), Watcher()
    expected = plain(model, *RUN, "pt")
    ours = sample(model, *RUN)
    assert torch.equal(sample(model, *RUN, [watcher]), ours)
    drawn = pictures(model, ours)
    assert torch.equal((drawn.transpose(1, 2) if drawn.ndim == 5 else drawn).float(), expected.float())
    assert [step.index for step in watcher.steps] == [0, 1, 2] and torch.equal(watcher.steps[-1].x_next, ours)
    assert len(watcher.sigmas) == 4 and (watcher.sigmas.diff() <= 0).all() and watcher.sigmas[-1] == 0
    for call in watcher.calls:
        assert len(call.latents) in (2, 4) and call.batch == 2
    for step, following in zip(watcher.steps[:-1], watcher.steps[1:], strict=True):
        torch.testing.assert_close(step.x_next.to(dtype), following.x.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_a_saved_pipeline_is_loaded_and_generates(name, tmp_path):
    about, expected = PIPELINES[name], tiny_generator(name)
    folder = save_tiny(name, tmp_path / "model")
    entry = Model(
        "dit", str(folder), width=about.size, height=about.size, frames=about.frames, steps=3, guidance=about.guidance,
        max_sequence_length=about.length, call=about.call,
    )  # fmt: skip
    (tmp_path / "p.csv").write_text("prompt,negative_prompt,seed\na red ring,dull,3\na blue star,blurred,4\n")
    generate("m", entry, tmp_path / "p.csv", tmp_path / "s.tar", settings=Generate(slice_size=2))
    made = list(read_tar(tmp_path / "s.tar"))
    negatives = [s["json"]["negative_prompt"] for s in made]
    assert negatives in (RUN[1], ["", ""])  # the second where the pipeline reads none
    ours = sample(expected, RUN[0], negatives, RUN[2]).float().numpy()
    np.testing.assert_allclose(np.stack([s["latent.npy"] for s in made]), ours, rtol=1e-3, atol=1e-5)
    assert ("mp4" in made[0]) == (about.frames > 1)


def test_guidance_is_the_pipelines_own_where_none_is_given(tmp_path):
    entry = Model("dit", str(save_tiny("z-image", tmp_path)), width=16, height=16, steps=1)
    assert load_generator("m", entry, "cpu").entry.guidance == 5.0


def test_a_pipeline_without_a_transformer_and_a_modular_one_are_refused(tmp_path):
    folder = save_tiny("pixart-sigma", tmp_path / "m")
    index = json.loads((folder / "model_index.json").read_text())
    del index["transformer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"m is a PixArtSigmaPipeline, which has no transformer"):
        load_generator("m", Model("dit", str(folder)), "cpu")
    (folder / "model_index.json").rename(folder / "modular_model_index.json")
    with pytest.raises(InputError, match=r"is a modular pipeline \(modular_model_index.json alone\)"):
        load_generator("m", Model("dit", str(folder)), "cpu")


def test_a_scheduler_without_noise_levels_is_refused_by_what_records_them():
    model = tiny_generator("pixart-sigma")
    plain(model, *RUN, "latent")
    del model.pipe.scheduler.alphas_cumprod
    with pytest.raises(InputError, match="DDIMScheduler has neither sigmas nor cumulated alphas"):
        sample(model, *RUN, [Watcher()])


def test_a_folder_under_the_name_of_a_hub_model_is_refused_with_the_fix(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match=r"models\.m: `source` is a folder here, and `revision` a commit"):
        load_generator("m", Model("dit", str(tmp_path), "a" * 40), "cpu")
