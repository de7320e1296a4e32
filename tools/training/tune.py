"""Fine-tuning of the generators and the captioner: captions that leave attributes out, and texts padded to any length.

The generators learn to fill in what a prompt does not say as the training scenes are distributed, and to read text
sequences of 16 to 512 tokens, which diffusers pads prompts to by default. The captioner learns a second task: after the
word `scene` it leaves out attributes at random, each as often as KEPT says; without it, it names all five as before.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from transformers import BlipForConditionalGeneration

from ditscope.refine.loop import LoopSettings
from ditscope.shapes.world import ATTRIBUTES, describe, train_scenes
from training import captioner, generator
from training.acceptance import load_pipeline
from training.data import base_folder, cached_pictures, cached_tensors, model_folder, to_tensor
from training.loop import load_average, train
from training.text import TASK_WORD, free_text
from training.vae import encode

SETTINGS = {
    "tune-flux": LoopSettings(steps=3600, batch=48, lr=8e-4, warmup=60, decay=0.45, ema=0.998, seed=21, muon=True),
    "tune-sd3": LoopSettings(steps=2400, batch=48, lr=8e-4, warmup=60, decay=0.45, ema=0.998, seed=22, muon=True),
    "tune-blip": LoopSettings(steps=900, batch=48, lr=6e-4, warmup=60, decay=0.6, ema=0.99, seed=23, muon=True),
}
# Text tokens of a step, their share of the steps, and samples of one: about as much work at each length.
LENGTHS = {32: (0.64, 1.0), 64: (0.12, 0.75), 256: (0.12, 1 / 3), 512: (0.12, 1 / 6)}
LATE = 0.5  # share of the times nearer to noise, where it is decided what a prompt leaves open
COMPLETE = 0.4  # share of prompts that name all five attributes
KEPT = {"shape": 0.95, "colour": 0.9, "size": 0.7, "place": 0.8, "background": 0.8}


def subset(rng: np.random.Generator) -> tuple[str, ...]:
    """The attributes that a prompt names: all five in 40 % of the draws, else any number of them, 0 to 5."""
    if rng.random() < COMPLETE:
        return ATTRIBUTES
    count = rng.integers(len(ATTRIBUTES) + 1)
    return tuple(ATTRIBUTES[i] for i in sorted(rng.permutation(len(ATTRIBUTES))[:count]))


def prompt_of(scene, rng: np.random.Generator) -> str:
    """A prompt that names a random subset of a scene's attributes: the canonical words, or as a person might write."""
    names = subset(rng)
    if rng.random() < 0.5:
        return describe({name: getattr(scene, name) for name in names})
    return free_text(scene, rng, names)[0]


def text_length(rng: np.random.Generator) -> tuple[int, float]:
    """The text tokens of one step, and which part of the batch fits beside them."""
    lengths = list(LENGTHS)
    chosen = lengths[rng.choice(len(lengths), p=[share for share, _ in LENGTHS.values()])]
    return chosen, LENGTHS[chosen][1]


def generator_loss(stage: str, pipeline: DiffusionPipeline, latents: torch.Tensor, settings: LoopSettings):
    """The flow-matching loss of `generator.flow_loss` on fresh prompts, at a text length drawn for each step."""
    scenes = train_scenes()
    renders = len(latents) // len(scenes)

    def loss(step: int, random: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=random)))
        length, part = text_length(rng)
        rows = rng.integers(len(latents), size=round(settings.batch * part))
        prompts = [prompt_of(scenes[row // renders], rng) for row in rows]
        prompts = ["" if rng.random() < generator.DROP_PROMPT[stage] else prompt for prompt in prompts]
        condition, pooled = generator.encode_prompts(pipeline, prompts, length)
        clean = latents[rows].float()
        times = generator.logit_normal(len(clean), random, LATE)
        value, numbers = generator.flow_loss(stage, pipeline.transformer, clean, condition, pooled, times, random)
        return value, numbers | {"tokens": length}

    return loss


def run_generator(stage: str, out: Path, settings: LoopSettings) -> dict:
    """Fine-tune a generator of out/base and save the pipeline to out/models."""
    pipeline, name = start_generator(stage, out)
    pictures = cached_pictures(out / "data", 10, 101)
    latents = cached_tensors(
        out / "data" / "latents.safetensors", lambda: {"latents": encode(pipeline.vae, pictures).half()}
    )["latents"]
    loss = generator_loss(name, pipeline, latents, settings)
    summary = train(pipeline.transformer, loss, settings, out / ".partial" / stage)
    generator.finish(pipeline, model_folder(out, name))
    return summary


def start_generator(stage: str, out: Path) -> tuple[DiffusionPipeline, str]:
    """The generator that a stage fine-tunes, and its name."""
    name = stage.removeprefix("tune-")
    return load_pipeline(base_folder(out, name)), name


def lossy_captions(scenes: list, rng: np.random.Generator) -> list[str]:
    """A caption of each scene after the task word; every attribute is named with its own probability."""
    texts = []
    for scene in scenes:
        named = {name: value for name, value in scene.attributes().items() if rng.random() < KEPT[name]}
        texts.append(f"{TASK_WORD} {describe(named)}")
    return texts


def captioner_loss(model: torch.nn.Module, pictures: np.ndarray, settings: LoopSettings):
    """Next-token cross-entropy: half of the captions name all attributes, half leave some out after the task word."""
    scenes, tokenizer = train_scenes(), captioner.bert_tokenizer()
    per_scene = len(pictures) // len(scenes)
    task = tokenizer.convert_tokens_to_ids(TASK_WORD)

    def loss(step: int, random: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=random)))
        rows = rng.integers(len(pictures), size=settings.batch)
        shown, half = [scenes[row // per_scene] for row in rows], settings.batch // 2
        texts = [describe(scene.attributes()) for scene in shown[:half]] + lossy_captions(shown[half:], rng)
        tokens = tokenizer(texts, padding="longest", return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        labels = ids.masked_fill((mask == 0) | (ids == task), -100)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(pixel_values=to_tensor(pictures[rows]), input_ids=ids, attention_mask=mask, labels=labels)
        guess = output.logits[:half, :-1].argmax(-1)
        right = (guess.eq(labels[:half, 1:]) | labels[:half, 1:].eq(-100)).all(1)
        return output.loss.float(), {"exact": right.float().mean().item()}

    return loss


def run_captioner(stage: str, out: Path, settings: LoopSettings) -> dict:
    """Fine-tune the captioner of out/base and save it to out/models."""
    model = start_captioner(out)
    pictures = captioner.training_pictures(out, load_pipeline(base_folder(out, "flux")).vae)
    summary = train(model, captioner_loss(model, pictures, settings), settings, out / ".partial" / stage)
    captioner.finish(model, model_folder(out, "blip"))
    return summary


def start_captioner(out: Path) -> BlipForConditionalGeneration:
    """The captioner that is fine-tuned."""
    return BlipForConditionalGeneration.from_pretrained(base_folder(out, "blip"), dtype=torch.float32)


def export(stage: str, out: Path) -> dict:
    """Save the model of the last checkpoint to out/models, without training on."""
    if stage == "tune-blip":
        model = start_captioner(out)
        state = load_average(model, out / ".partial" / stage)
        captioner.finish(model, model_folder(out, "blip"))
        return state
    pipeline, name = start_generator(stage, out)
    state = load_average(pipeline.transformer, out / ".partial" / stage)
    generator.finish(pipeline, model_folder(out, name))
    return state
