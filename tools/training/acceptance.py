"""Acceptance of the shipped models on held-out combinations, measured through their from_pretrained folders."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPModel, CLIPProcessor

from ditscope.core.intervals import mean_interval
from ditscope.shapes.oracle import UNCLEAR, oracle
from ditscope.shapes.world import (
    ATTRIBUTES,
    Scene,
    all_scenes,
    augment,
    caption,
    describe,
    held_out,
    is_description,
    parse_caption,
    render,
    train_scenes,
)
from training import readme
from training.clip import neighbours
from training.text import MAX_TEXT, TASK_WORD

SEEDS = (0, 1, 2, 3)
STEPS = 8
GUIDANCE = {"shapes-flux": 1.0, "shapes-sd3": 3.0}
# What the pipelines are asked for: tokens of the T5 text, whether SD3 has its T5, pictures per combination. The longer
# texts are diffusers' defaults and take several times as long.
CALLS = {
    "shapes-flux": {
        "32 tokens": (32, True, 4),
        "512 tokens (the default)": (512, True, 1),
    },
    "shapes-sd3": {
        "32 tokens": (32, True, 4),
        "256 tokens (the default)": (256, True, 1),
        "256 tokens, without T5": (256, False, 1),
    },
}
LEFT_OUT_PROMPTS, LEFT_OUT_SEEDS = 8, 32  # per attribute
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


def attribute_rows(read: list[dict], scenes: list[Scene]) -> dict[str, dict]:
    """Shares of right attributes, and of all five at once, against the scenes asked for."""
    right = np.array([[f[n] == getattr(s, n) for n in ATTRIBUTES] for f, s in zip(read, scenes, strict=True)])
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
    length: int = MAX_TEXT,
) -> list[Image.Image]:
    """64 x 64 pictures, one per prompt, each from a generator of its own seed; `length` tokens of text for T5."""
    result: list[Image.Image] = []
    common = {"height": 64, "width": 64, "num_inference_steps": steps, "max_sequence_length": length}
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


def without_t5(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The SD3 pipeline as it is loaded with `text_encoder_3=None`."""
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    return pipeline


def held_out_pictures(
    folder: Path, guidance: float, cache: Path, length: int = MAX_TEXT, t5: bool = True, each: int = len(SEEDS)
) -> tuple[list[Image.Image], list[Scene]]:
    """`each` pictures of every held-out combination, from a cache that is newer than the weights or drawn now."""
    scenes = [scene for scene in held_out() for _ in SEEDS[:each]]
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if not cache.exists() or cache.stat().st_mtime < weights.stat().st_mtime:
        seeds = [picture_seed(i, seed) for i in range(len(held_out())) for seed in SEEDS[:each]]
        pipeline = load_pipeline(folder) if t5 else without_t5(load_pipeline(folder))
        images = pictures(pipeline, [caption(scene) for scene in scenes], seeds, guidance, length=length)
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, np.stack([np.asarray(image) for image in images]), allow_pickle=False)
    return [Image.fromarray(pixels) for pixels in np.load(cache, allow_pickle=False)], scenes


def check_generator(images: list[Image.Image], scenes: list[Scene], each: int = len(SEEDS)) -> dict[str, dict]:
    """Attributes the oracle reads from the pictures, and whether the `each` pictures of one prompt differ by seed."""
    rows = attribute_rows([oracle(image) for image in images], scenes)
    if each == 1:
        return rows
    stack = np.stack([np.asarray(image, np.float32) for image in images]).reshape(-1, each, 64 * 64 * 3)
    differences = np.abs(stack[:, 1:] - stack[:, :1]).mean(-1)
    rows["seeds differ"] = row(int((differences > 0.5).sum()), differences.size, 0.95)
    return rows


def left_out_prompts(attribute: str, rng: np.random.Generator) -> list[dict[str, str]]:
    """What prompts name that leave an attribute, and perhaps others, out: distinct random parts of training scenes."""
    scenes, others = train_scenes(), [name for name in ATTRIBUTES if name != attribute]
    chosen: list[dict[str, str]] = []
    while len(chosen) < LEFT_OUT_PROMPTS:
        scene = scenes[rng.integers(len(scenes))]
        names = [others[i] for i in sorted(rng.permutation(len(others))[: rng.integers(1, len(others) + 1)])]
        named = {name: getattr(scene, name) for name in names}
        if named not in chosen:
            chosen.append(named)
    return chosen


def entropy(values: list[str]) -> float:
    """Entropy of a sample in nats, with Miller and Madow's correction of its bias, (K - 1) / 2N (Miller, 1955)."""
    counts = np.unique(np.asarray(values), return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * counts.sum()))


def check_left_out(folder: Path, guidance: float) -> dict[str, dict]:
    """Prompts that leave attributes out: are the named ones drawn, and do the others vary with the seed?

    For each attribute the entropy of what the oracle reads over 32 seeds, mean over 8 prompts that do not name it, over
    the entropy of the training scenes with what the prompt names. Unclear readings are left out.
    """
    pipeline, rng = load_pipeline(folder), np.random.default_rng(10)
    rows, kept = {}, np.zeros(2, int)
    for place, attribute in enumerate(ATTRIBUTES):
        prompts = left_out_prompts(attribute, rng)
        asked = [named for named in prompts for _ in range(LEFT_OUT_SEEDS)]
        seeds = [picture_seed(500 + place, i) for i in range(len(asked))]
        read = [oracle(i) for i in pictures(pipeline, [describe(named) for named in asked], seeds, guidance)]
        right = [seen[name] == value for seen, named in zip(read, asked, strict=True) for name, value in named.items()]
        kept += [sum(right), len(right)]
        ratios = []
        for i, named in enumerate(prompts):
            seen = [f[attribute] for f in read[i * LEFT_OUT_SEEDS :][:LEFT_OUT_SEEDS] if f[attribute] != UNCLEAR]
            fits = [s for s in train_scenes() if all(getattr(s, name) == value for name, value in named.items())]
            ratios.append(entropy(seen) / entropy([getattr(s, attribute) for s in fits]) if seen else 0.0)
        rows[f"{attribute} left out: entropy"] = mean_row(ratios, len(read), 0.8)
    return {"named attributes": row(int(kept[0]), int(kept[1]), 0.9), **rows}


def mean_row(values: list[float], total: int, target: float) -> dict:
    """A mean of a few prompts' values with its 95 % interval by Student's t; met when the mean reaches the target."""
    mean = mean_interval(np.asarray(values))
    numbers = {"share": mean.mean, "low": mean.low, "high": mean.high}
    rounded = {key: None if value is None else round(value, 4) for key, value in numbers.items()}
    return {**rounded, "n": total, "target": target, "met": bool(mean.mean >= target)}


@torch.no_grad()
def captions(folder: Path, images: list[Image.Image], batch: int = 64, task: str = "", seed: int = 0) -> list[str]:
    """What the captioner writes for each picture: by greedy search, or sampled where it is given a task word."""
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = BlipProcessor.from_pretrained(folder)
    texts: list[str] = []
    torch.manual_seed(seed)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        words = {"text": [task] * len(part)} if task else {}
        inputs = processor(images=part, return_tensors="pt", **words)
        output = model.generate(**inputs, max_length=MAX_TEXT, do_sample=bool(task))
        texts += [text.removeprefix(task).strip() for text in processor.batch_decode(output, skip_special_tokens=True)]
    return texts


def check_lossy_captioner(folder: Path, images: list[Image.Image], scenes: list[Scene]) -> dict:
    """Captions after the task word: do they parse, is what they name true, and how often is each attribute named?"""
    texts = captions(folder, images, task=TASK_WORD)
    named = [{k: v for k, v in parse_caption(text).items() if v is not None} for text in texts]
    true = [getattr(scene, k) == v for scene, names in zip(scenes, named, strict=True) for k, v in names.items()]
    rows = {"in the grammar": row(sum(map(is_description, texts)), len(texts), 0.95)}
    rows["named attributes true"] = row(sum(true), len(true), 0.9)
    return rows | {f"{k} named": row(sum(k in names for names in named), len(texts), None) for k in ATTRIBUTES}


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
    report["shapes-blip"]["renders, after `scene`"] = check_lossy_captioner(folder / "shapes-blip", images, scenes)
    for name, guidance in GUIDANCE.items():
        report[name] = {}
        for call, (length, t5, each) in CALLS[name].items():
            cache = out / "pictures" / f"{name}-{length}{'' if t5 else '-without-t5'}.npy"
            drawn, shown_scenes = held_out_pictures(folder / name, guidance, cache, length, t5, each)
            report[name][call] = check_generator(drawn, shown_scenes, each)
            if length == MAX_TEXT:
                shown = check_captioner(folder / "shapes-blip", drawn, scenes, 0.8)
                report["shapes-blip"][f"pictures of {name}"] = shown
        report[name]["prompts that leave attributes out"] = check_left_out(folder / name, guidance)
    return report


def run(out: Path) -> dict:
    """Measure the models in out/models and write out/acceptance.json and the READMEs."""
    report = measure(out)
    (out / "acceptance.json").write_text(json.dumps(report, indent=1))
    readme.write(report, out, GUIDANCE)
    return report
