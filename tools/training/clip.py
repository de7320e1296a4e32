"""shapes-clip: a CLIPModel whose text tower, trained first and then frozen, also conditions the generators."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ditscope.core.tensor_files import save_tensors
from ditscope.refine.loop import LoopSettings
from ditscope.shapes.world import ATTRIBUTES, VALUES, Scene, train_scenes
from training.data import Readout, attribute_targets, cached_pictures, model_folder, to_tensor
from training.loop import load_average, train
from training.text import MAX_TEXT, clip_tokenizer, free_text

SETTINGS = {
    "cliptext": LoopSettings(steps=400, batch=128, lr=2e-3, warmup=40, decay=0.5, ema=0.98, seed=13),
    "clip": LoopSettings(steps=1000, batch=96, lr=1.5e-3, warmup=80, decay=0.5, ema=0.98, seed=14),
}
TEXT_WIDTH, VISION_WIDTH, PROJECTION = 64, 128, 64
GROUP = 4
PICTURES = ("data", 10, 102, True)


def build() -> CLIPModel:
    """The untrained CLIPModel (Radford et al., arXiv:2103.00020)."""
    torch.manual_seed(SETTINGS["clip"].seed)
    tokenizer = clip_tokenizer()
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TEXT,
        "projection_dim": PROJECTION,
        "pad_token_id": tokenizer.pad_token_id,
        **tokens,
    }
    vision = {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 3 * VISION_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": PROJECTION,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    """64 x 64 pictures scaled to [-1, 1], and the tokenizer."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def neighbours(scene: Scene, allowed: frozenset[Scene] | None = None) -> list[Scene]:
    """The scenes that differ from one in exactly one attribute (20 in all), kept to the allowed ones."""
    scenes = []
    for name in ATTRIBUTES:
        for value in VALUES[name]:
            other = Scene(**{**scene.attributes(), name: value})
            if other != scene and (allowed is None or other in allowed):
                scenes.append(other)
    return scenes


def grouped_batch(rng: np.random.Generator, size: int) -> list[int]:
    """Indices of distinct training scenes, in groups of one and its hard negatives of one changed attribute."""
    scenes = train_scenes()
    index = {scene: i for i, scene in enumerate(scenes)}
    allowed = frozenset(scenes)
    chosen: dict[int, None] = {}
    while len(chosen) < size:
        base = int(rng.integers(len(scenes)))
        others = neighbours(scenes[base], allowed)
        picks = [index[others[i]] for i in rng.permutation(len(others))[: GROUP - 1]]
        chosen.update(dict.fromkeys([base, *picks]))
    return list(chosen)[:size]


class Trainee(torch.nn.Module):
    """CLIP and one linear read-out of the attributes shared by both towers, which does not ship."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.readout = Readout(PROJECTION)

    def attribute_loss(self, embedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the attributes of unit vectors (N, 64) against (N, 5)."""
        return self.readout.loss(8 * embedding, targets)


def text_loss_function(model: Trainee, tokenizer: CLIPTokenizer, settings: LoopSettings):
    """InfoNCE between two texts of the same scene (Gao et al., arXiv:2104.08821), plus the attribute read-out."""
    scenes = train_scenes()

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        rows = grouped_batch(rng, settings.batch // 2)
        texts = [free_text(scenes[i], rng)[0] for i in rows + rows]
        tokens = tokenizer(texts, padding="max_length", max_length=MAX_TEXT, truncation=True, return_tensors="pt")
        embedding = F.normalize(model.clip.get_text_features(input_ids=tokens["input_ids"]).pooler_output, dim=-1)
        first, second = embedding.chunk(2)
        logits = 14 * first @ second.t()
        labels = torch.arange(len(rows))
        contrast = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2
        read = model.attribute_loss(embedding, attribute_targets(rows + rows))
        return contrast + read, {"hit": logits.argmax(1).eq(labels).float().mean().item(), "read": read.item()}

    return loss


def loss_function(model: Trainee, tokenizer: CLIPTokenizer, pictures: np.ndarray, settings: LoopSettings):
    """Symmetric InfoNCE over a batch with hard negatives, plus the attribute read-out of the picture."""
    scenes = train_scenes()
    per_scene = len(pictures) // len(scenes)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        rows = grouped_batch(rng, settings.batch)
        images = np.stack([pictures[i * per_scene + rng.integers(per_scene)] for i in rows])
        texts = [free_text(scenes[i], rng)[0] for i in rows]
        tokens = tokenizer(texts, padding="max_length", max_length=MAX_TEXT, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model.clip(input_ids=tokens["input_ids"], pixel_values=to_tensor(images))
        labels = torch.arange(len(rows))
        logits = output.logits_per_image.float()
        contrast = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2
        read = model.attribute_loss(output.image_embeds.float(), attribute_targets(rows))
        hit = logits.argmax(1).eq(labels).float().mean().item()
        return contrast + read, {"hit": hit, "read": read.item()}

    return loss


def set_trainable(model: Trainee, text: bool) -> None:
    """Train only the text tower and the read-out, or everything but these."""
    for name, p in model.named_parameters():
        of_text = name.startswith(("clip.text", "readout"))
        p.requires_grad_(of_text == text)


def finish(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save the model in bfloat16 and its processor."""
    clip.to(torch.bfloat16).save_pretrained(folder)
    processor(tokenizer).save_pretrained(folder)


def text_towers(folder: Path) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """The text tower of a saved shapes-clip, without and with its projection."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    plain, projected = CLIPTextModel(clip.config.text_config), CLIPTextModelWithProjection(clip.config.text_config)
    weights = clip.state_dict()
    for model in (plain, projected):
        source = {k.removeprefix("text_model."): v for k, v in weights.items()}
        model.load_state_dict({k: source[k.removeprefix("text_model.")] for k in model.state_dict()})
    return plain.eval(), projected.eval()


def run_text(stage: str, out: Path, settings: LoopSettings) -> dict:
    """Train the text tower alone on texts of the training scenes and save the CLIPModel to out/cliptext."""
    model = Trainee(build())
    set_trainable(model, text=True)
    summary = train(model, text_loss_function(model, clip_tokenizer(), settings), settings, out / ".partial" / stage)
    finish(model.clip, clip_tokenizer(), out / stage)
    save_tensors(model.readout.state_dict(), out / stage / "readout.safetensors")
    return summary


def frozen_tokenizer(out: Path) -> CLIPTokenizer:
    """The tokenizer that the text tower was trained with: learning one again may number equal pairs otherwise."""
    return CLIPTokenizer.from_pretrained(out / "cliptext")


def start(out: Path) -> Trainee:
    """A CLIP with the frozen text tower and read-out of out/cliptext and an untrained image tower."""
    model = Trainee(CLIPModel.from_pretrained(out / "cliptext", dtype=torch.float32))
    model.readout.load_state_dict(load_file(out / "cliptext" / "readout.safetensors"))
    set_trainable(model, text=False)
    return model


def run(stage: str, out: Path, settings: LoopSettings) -> dict:
    """Train the image tower on augmented renders of the training scenes; save shapes-clip to out/models."""
    pictures = cached_pictures(out / PICTURES[0], *PICTURES[1:])
    model = start(out)
    loss = loss_function(model, frozen_tokenizer(out), pictures, settings)
    summary = train(model, loss, settings, out / ".partial" / stage)
    finish(model.clip, frozen_tokenizer(out), model_folder(out, stage))
    return summary


def export(stage: str, out: Path) -> dict:
    """Save the model of the last checkpoint to out/models/shapes-clip, without training on."""
    model = start(out)
    state = load_average(model, out / ".partial" / stage)
    finish(model.clip, frozen_tokenizer(out), model_folder(out, stage))
    return state
