"""Training the shipped models: the loop resumes to the same weights, and the whole chain of models/train.smk runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditscope.models.folders import check_model_folder
from ditscope.models.loading import load_generator
from ditscope.models.sampling import decode, sample
from ditscope.models.settings import Model
from ditscope.refine.loop import LoopSettings, learning_rate, load_checkpoint
from ditscope.shapes.world import ATTRIBUTES, is_description, parse_caption, train_scenes
from training import acceptance, tune
from training.loop import load_average, train
from workflow import ROOT, checkout

SETTINGS = LoopSettings(steps=12, batch=8, lr=1e-2, warmup=3, ema=0.9, checkpoint_every=5)


class Interrupted(Exception):
    """A kill, as far as the loop can see one."""


def regression(stop_at=None):
    """A small model with matrices inside blocks, and the loss of fitting a fixed linear map with it."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(6, 6)]), "out": torch.nn.Linear(6, 2)})
    target = torch.randn(6, 2)

    def loss(step, generator):
        if step == stop_at:
            raise Interrupted
        x = torch.randn(8, 6, generator=generator)
        value = (model["out"](torch.tanh(model["blocks"][0](x))) - x @ target).square().mean()
        return value, {}

    return model, loss


@pytest.mark.parametrize("muon", [False, True])
def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path, muon):
    settings = replace(SETTINGS, muon=muon)
    whole, loss = regression()
    train(whole, loss, settings, tmp_path / "whole")

    stopped, loss = regression(stop_at=8)
    with pytest.raises(Interrupted):
        train(stopped, loss, settings, tmp_path / "parts")
    _, state = load_checkpoint(tmp_path / "parts")
    assert state["step"] == 5 and len(list((tmp_path / "parts").glob("*.safetensors"))) == 1
    resumed, loss = regression()
    summary = train(resumed, loss, settings, tmp_path / "parts")
    assert summary["step"] == 12 and summary["settings"]["muon"] is muon
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name

    exported, _ = regression()
    assert load_average(exported, tmp_path / "parts")["step"] == 12
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, exported.state_dict()[name]), name


def test_what_is_left_is_the_moving_average_of_the_weights(tmp_path):
    model, loss = regression()
    seen, expected = [], {name: p.detach().double() for name, p in model.named_parameters()}

    def watched(step, generator):
        if step:
            seen.append({name: p.detach().double() for name, p in model.named_parameters()})
        return loss(step, generator)

    train(model, watched, SETTINGS, tmp_path)
    tensors, _ = load_checkpoint(tmp_path)
    seen.append({name: tensors[f"model.{name}"].double() for name in expected})
    for step, weights in enumerate(seen, 1):  # the decay warms up: (1 + step) / (10 + step)
        decay = min(SETTINGS.ema, (1 + step) / (10 + step))
        expected = {name: decay * old + (1 - decay) * weights[name] for name, old in expected.items()}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_learning_rate_rises_stays_and_falls():
    settings = replace(SETTINGS, steps=1000, warmup=100, decay=0.2)
    rates = np.array([learning_rate(step, settings) for step in range(1000)]) / settings.lr
    np.testing.assert_allclose(rates[:100], np.arange(1, 101) / 100)
    assert (rates[100:801] == 1).all() and (np.diff(rates[800:]) < 0).all()
    np.testing.assert_allclose(rates[850], 0.5)  # 1 - sqrt(1 / 4)
    assert rates[-1] < 0.01


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_checkpoint(tmp_path):
    model, loss = regression()

    def diverging(step, generator):
        value, numbers = loss(step, generator)
        return value * (float("nan") if step == 7 else 1), numbers

    with pytest.raises(FloatingPointError, match="step 7"):
        train(model, diverging, SETTINGS, tmp_path)
    assert load_checkpoint(tmp_path)[1]["step"] == 5


def test_prompts_of_the_fine_tuning_name_any_part_of_a_scene():
    rng = np.random.default_rng(0)
    drawn = [tune.subset(rng) for _ in range(4000)]
    assert len(set(drawn)) == 2 ** len(ATTRIBUTES)  # every subset, the empty one among them
    complete = sum(names == ATTRIBUTES for names in drawn) / len(drawn)
    assert abs(complete - (0.4 + 0.6 / 6)) < 0.03
    scene = train_scenes()[5]
    for _ in range(300):
        named = {k: v for k, v in parse_caption(tune.prompt_of(scene, rng)).items() if v is not None}
        assert named.items() <= scene.attributes().items()


def test_captions_after_the_task_word_leave_out_as_often_as_they_should():
    scenes = list(train_scenes()) * 2
    texts = tune.lossy_captions(scenes, np.random.default_rng(1))
    assert all(text.startswith("scene ") and is_description(text.removeprefix("scene ")) for text in texts)
    named = [parse_caption(text) for text in texts]
    for name, share in tune.KEPT.items():
        assert (
            abs(np.mean([n[name] is not None for n in named]) - share) < 4 * (share * (1 - share) / len(texts)) ** 0.5
        )


def test_entropy_is_that_of_the_distribution_also_in_small_samples():
    rng = np.random.default_rng(2)
    shares = [0.5, 0.25, 0.125, 0.125]
    truth = -sum(p * np.log(p) for p in shares)
    estimates = [acceptance.entropy([str(v) for v in rng.choice(4, 32, p=shares)]) for _ in range(2000)]
    assert abs(np.mean(estimates) - truth) < 0.01  # the plain estimate is 0.047 too low
    assert acceptance.entropy(["a"] * 10) == 0


@pytest.mark.system
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_models_train_from_nothing_in_two_steps_each(tmp_path):
    folder = checkout(tmp_path)
    models = folder / "results" / "training" / "models"
    targets = [
        *(f"results/training/models/shapes-{name}/model_index.json" for name in ("flux", "sd3")),
        *(f"results/training/models/shapes-{name}/model.safetensors" for name in ("clip", "blip")),
    ]
    command = [sys.executable, "-m", "snakemake", "-s", "models/train.smk", "--cores", "1", *targets]
    command += ["--config", "steps=2"]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)
    logs = "\n".join(log.read_text()[-500:] for log in (folder / "results/training/logs").glob("*.log"))
    assert done.returncode == 0, done.stderr[-2000:] + logs
    assert json.loads((ROOT / "models/shapes-flux/model_index.json").read_text()).keys() == (
        json.loads((models / "shapes-flux/model_index.json").read_text()).keys()
    )
    for name in ("flux", "sd3", "clip", "blip"):
        check_model_folder(models / f"shapes-{name}")
    for family in ("flux", "sd3"):
        entry = Model(family=family, source=str(models / f"shapes-{family}"), width=64, height=64, steps=2)
        model = load_generator(family, entry)
        image = decode(model, sample(model, ["a ring"], [""], [0]))
        assert image.shape == (1, 64, 64, 3) and image.float().std() > 0
