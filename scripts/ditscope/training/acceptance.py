"""Acceptance of the shipped models on held-out combinations, measured through their from_pretrained folders."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPModel, CLIPProcessor

from ditscope.oracle import oracle
from ditscope.shapes import ATTRIBUTES, Scene, all_scenes, augment, caption, held_out, parse_caption, render
from ditscope.training import readme
from ditscope.training.clip import neighbours
from ditscope.training.text import MAX_TEXT

SEEDS = (0, 1, 2, 3)
STEPS = 8
GUIDANCE = {"shapes-flux": 1.0, "shapes-sd3": 3.0}
TARGETS = {"shape": 0.9, "colour": 0.95, "size": 0.9, "place": 0.95, "background": 0.95, "all five": 0.8}
CANDIDATES = 64


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    share, square = right / total, z * z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    return middle - half, middle + half


def row(right: int, total: int, target: float | None) -> dict:
    """One measured share with its interval and target, if any; met when the lower bound reaches the target."""
    low, high = wilson(right, total)
    share = round(right / total, 4)
    return {"share": share, "low": round(low, 4), "high": round(high, 4), "n": total, "target": target} | {
        "met": target is None or low >= target
    }


def attribute_rows(found: list[dict], scenes: list[Scene]) -> dict[str, dict]:
    """Shares of right attributes, and of all five at once, against the scenes asked for."""
    right = np.array([[f[n] == getattr(s, n) for n in ATTRIBUTES] for f, s in zip(found, scenes, strict=True)])
    rows = {n: row(int(right[:, i].sum()), len(scenes), TARGETS[n]) for i, n in enumerate(ATTRIBUTES)}
    return rows | {"all five": row(int(right.all(1).sum()), len(scenes), TARGETS["all five"])}


def load_pipeline(folder: Path) -> DiffusionPipeline:
    """A shipped pipeline, its bfloat16 weights in float32, without a progress bar."""
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def pictures(
    pipeline: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    guidance: float,
    steps: int = STEPS,
    batch: int = 48,
) -> list[Image.Image]:
    """64 x 64 pictures, one a prompt, each from a generator of its own seed."""
    result: list[Image.Image] = []
    common = {"height": 64, "width": 64, "num_inference_steps": steps, "max_sequence_length": MAX_TEXT}
    extra = {} if isinstance(pipeline, FluxPipeline) else {"negative_prompt": ""}
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        output = pipeline(prompts[part], guidance_scale=guidance, generator=generators, **common, **extra)
        result += output.images
    return result


def picture_seed(index: int, seed: int) -> int:
    """The generator seed of a prompt's picture, different for every prompt and seed."""
    return 1000 * index + seed


def held_out_pictures(folder: Path, guidance: float, cache: Path) -> tuple[list[Image.Image], list[Scene]]:
    """Four pictures of every held-out combination, from a cache that is newer than the weights or drawn now."""
    scenes = [scene for scene in held_out() for _ in SEEDS]
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if not cache.exists() or cache.stat().st_mtime < weights.stat().st_mtime:
        seeds = [picture_seed(i, seed) for i in range(len(held_out())) for seed in SEEDS]
        images = pictures(load_pipeline(folder), [caption(scene) for scene in scenes], seeds, guidance)
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, np.stack([np.asarray(image) for image in images]), allow_pickle=False)
    return [Image.fromarray(pixels) for pixels in np.load(cache, allow_pickle=False)], scenes


def check_generator(images: list[Image.Image], scenes: list[Scene]) -> dict[str, dict]:
    """Attributes the oracle reads from the pictures, and whether the pictures of one prompt differ by seed."""
    rows = attribute_rows([oracle(image) for image in images], scenes)
    stack = np.stack([np.asarray(image, np.float32) for image in images]).reshape(-1, len(SEEDS), 64 * 64 * 3)
    differences = np.abs(stack[:, 1:] - stack[:, :1]).mean(-1)
    rows["seeds differ"] = row(int((differences > 0.5).sum()), differences.size, 0.95)
    return rows


@torch.no_grad()
def captions(folder: Path, images: list[Image.Image], batch: int = 64) -> list[str]:
    """What the captioner writes for each picture."""
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = BlipProcessor.from_pretrained(folder)
    texts: list[str] = []
    for start in range(0, len(images), batch):
        inputs = processor(images=images[start : start + batch], return_tensors="pt")
        output = model.generate(**inputs, max_length=MAX_TEXT)
        texts += processor.batch_decode(output, skip_special_tokens=True)
    return texts


def check_captioner(folder: Path, images: list[Image.Image], scenes: list[Scene], target: float) -> dict:
    """Attributes that the captions name, against the scenes shown or asked for."""
    rows = attribute_rows([parse_caption(text) for text in captions(folder, images)], scenes)
    rows = {name: entry | {"target": None, "met": True} for name, entry in rows.items()}
    rows["all five"] = row(round(rows["all five"]["share"] * len(scenes)), len(scenes), target)
    return rows


def candidates(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """The scene, all 20 that differ from it in one attribute, and 43 others: 64 in all."""
    near = neighbours(scene)
    excluded = {scene, *near}
    far = [other for other in all_scenes() if other not in excluded]
    picks = rng.choice(len(far), CANDIDATES - 1 - len(near), replace=False)
    return [scene, *near, *(far[i] for i in picks)]


@torch.no_grad()
def check_clip(folder: Path, images: list[Image.Image], scenes: list[Scene]) -> dict:
    """How often the right caption is the nearest of 64."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    everything = all_scenes()
    tokens = processor(
        text=[caption(s) for s in everything], padding="max_length", max_length=MAX_TEXT, return_tensors="pt"
    )
    texts = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    index = {scene: i for i, scene in enumerate(everything)}
    rng, right = np.random.default_rng(7), 0
    for start in range(0, len(images), 64):
        pixels = processor(images=images[start : start + 64], return_tensors="pt")
        vectors = model.get_image_features(**pixels).pooler_output
        for vector, scene in zip(vectors, scenes[start : start + 64], strict=True):
            rows = [index[s] for s in candidates(scene, rng)]
            right += int((texts[rows] @ vector).argmax()) == 0
    return {"right caption of 64": row(right, len(images), 0.95)}


def check_oracle(per_scene: int = 4) -> dict:
    """The oracle on augmented renders of every combination."""
    rng = np.random.default_rng(9)
    scenes = [scene for scene in all_scenes() for _ in range(per_scene)]
    rows = attribute_rows([oracle(augment(render(scene, rng), rng)) for scene in scenes], scenes)
    right = round(rows["all five"]["share"] * len(scenes))
    return {"all five": row(right, len(scenes), 0.995)}


def held_out_renders(seed: int = 8) -> tuple[list[Image.Image], list[Scene]]:
    """Four plain renders of every held-out combination."""
    rng = np.random.default_rng(seed)
    scenes = [scene for scene in held_out() for _ in SEEDS]
    return [render(scene, rng) for scene in scenes], scenes


def measure(out: Path) -> dict:
    """All acceptance figures of the models in out/models; the generators' pictures are kept in out/pictures."""
    folder = out / "models"
    images, scenes = held_out_renders()
    report = {"oracle": {"augmented renders": check_oracle()}}
    report["shapes-clip"] = {"renders": check_clip(folder / "shapes-clip", images, scenes)}
    report["shapes-blip"] = {"renders": check_captioner(folder / "shapes-blip", images, scenes, 0.9)}
    for name, guidance in GUIDANCE.items():
        drawn, _ = held_out_pictures(folder / name, guidance, out / "pictures" / f"{name}.npy")
        report[name] = {"pictures": check_generator(drawn, scenes)}
        report["shapes-blip"][f"pictures of {name}"] = check_captioner(folder / "shapes-blip", drawn, scenes, 0.8)
    return report


def run(out: Path) -> dict:
    """Measure the models in out/models and write out/acceptance.json and the READMEs."""
    report = measure(out)
    (out / "acceptance.json").write_text(json.dumps(report, indent=1))
    readme.write(report, out, GUIDANCE)
    return report
