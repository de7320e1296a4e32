"""`ditscope caching`: how many steps a step cache skips at each threshold, what that saves, and what images lose."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np

from ditscope.benchmark.run import wanted_runs
from ditscope.benchmark.settings import Benchmark
from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.intervals import mean_interval, unit_means
from ditscope.core.metrics import psnr_of_floats
from ditscope.core.paths import InputFile, OutputFile
from ditscope.models.loading import Generator, load_generator
from ditscope.models.prepare import prepare
from ditscope.models.sampling import decode, sample
from ditscope.models.settings import CACHES, Model, Scheme
from ditscope.models.step_cache import NEVER, StepCache, enable

log = logging.getLogger(__name__)

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
CAP = 60.0  # dB: that of less than half a grey level


@dataclass(frozen=True)
class Point:
    """One method at one threshold."""

    method: str
    threshold: float
    skipped: float  # share of the transformer's calls
    latency_ratio: float  # time over that of every step in full, median over batches, in turns
    psnr_db: float  # of images to those of every step in full, mean over prompts
    psnr_low: float | None
    psnr_high: float | None


def caching(
    name: str,
    model: Model,
    prompts: Annotated[InputFile, "a prompt CSV or a table of runs"],
    out: OutputFile,
    schemes: dict[str, Scheme],
    config: Annotated[str, "the scheme that is quantized with beneath the cache"] = "base",
    num_images: Annotated[int, "images per threshold"] = 16,
    num_steps: Annotated[int, "steps; 0: the model's own"] = 0,
    batch: Annotated[int, "images sampled together"] = 8,
    thresholds: Annotated[list[float], "thresholds of each method"] = list(THRESHOLDS),  # noqa: B006 (never changed)
) -> None:
    """Measure every method of step caching that a model's class allows, and write it as JSON with its profile.

    The profile holds, for this model and number of steps, MagCache's ratios, TeaCache's polynomial and the changes of
    input and output that they come from. Raises InputError for thresholds below 0.
    """
    check_thresholds(thresholds)
    if config not in schemes:
        raise InputError(f"--config: no scheme `{config}` in the config's `schemes`")
    model = replace(model, steps=num_steps or model.steps)
    runs = wanted_runs([prompts], replace(Benchmark(), num_images=num_images, kid_subset_size=1))[:num_images]
    generator = load_generator(name, model)
    if reason := prepare(generator, replace(schemes[config], cache=""), "eager", None):
        raise InputError(f"schemes.{config}: {reason}")
    document: dict[str, Any] = {"model": name, "scheme": config, "steps": model.steps, "images": num_images}
    document |= {"profile": None, "points": [], "refused": {}}
    for method in CACHES:
        if reason := enable(generator, method, 0.0):
            document["refused"][method] = reason
            continue
        cache = generator.pipe.transformer.step_cache
        points = measured(generator, cache, [(r["prompt"], r["seed"]) for r in runs], thresholds, batch)
        document["points"] += [asdict(point) for point in points]
        document["profile"] = asdict(cache.profiles[model.steps]) if cache.profiles else document["profile"]
        cache.remove()
    write_text(out, json.dumps(document, indent=1) + "\n")
    log.info("%s", as_text(document))


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Refuse thresholds below 0, which no change is."""
    if below := [threshold for threshold in thresholds if not threshold >= 0]:
        raise InputError(f"--thresholds: {below[0]:g} is below 0: 0 skips nothing, and more skips more")


def measured(
    generator: Generator, cache: StepCache, runs: list[tuple[str, int]], thresholds: Sequence[float], batch: int
) -> list[Point]:
    """The points of the method of `cache`; `runs` are prompts and seeds, sampled in batches of one size.

    Every batch is sampled in full and at each threshold, in turns, so that a machine's moods meet all alike.
    """
    parts = [runs[i : i + batch] for i in range(0, len(runs), batch)]
    took: dict[float, list[float]] = {threshold: [] for threshold in (NEVER, *thresholds)}
    psnr: dict[float, list[float]] = {threshold: [] for threshold in thresholds}
    skipped: dict[float, list[float]] = {threshold: [] for threshold in thresholds}
    pictures(generator, parts[0])  # warm-up, and the profile
    for part in parts:
        cache.threshold = NEVER
        full, seconds = pictures(generator, part)
        took[NEVER].append(seconds)
        for threshold in thresholds:
            cache.threshold, before = threshold or NEVER, (cache.calls, cache.skipped)
            images, seconds = pictures(generator, part)
            took[threshold].append(seconds)
            skipped[threshold].append((cache.skipped - before[1]) / (cache.calls - before[0]))
            psnr[threshold] += psnr_of_floats(full, images, CAP).tolist()
    return [
        Point(cache.method, threshold, float(np.mean(skipped[threshold])), ratio(took, threshold), mean, low, high)
        for threshold in thresholds
        for mean, low, high in [interval(psnr[threshold], [prompt for prompt, _ in runs])]
    ]


def pictures(generator: Generator, runs: list[tuple[str, int]]) -> tuple[np.ndarray, float]:
    """Images (runs, values) in [0, 1], and the seconds that their latents took."""
    prompts, seeds = zip(*runs, strict=True)
    began = time.perf_counter()
    latents = sample(generator, prompts, [""] * len(prompts), seeds)
    latents.sum().item()  # waits for the device
    seconds = time.perf_counter() - began
    return decode(generator, latents).numpy().reshape(len(prompts), -1) / 255, seconds


def interval(values: Sequence[float], prompts: Sequence[str]) -> tuple[float, float | None, float | None]:
    """Mean over prompts, whose seeds are averaged, with its 95 % interval; None for too few."""
    found = mean_interval(unit_means(np.array(values), prompts))
    return found.mean, found.low, found.high


def ratio(took: dict[float, list[float]], threshold: float) -> float:
    """Median over batches of the time at a threshold over that in full."""
    return float(np.median(np.divide(took[threshold], took[NEVER])))


def as_text(document: dict[str, Any]) -> str:
    """The points as a table in Markdown, and why a method is not among them."""
    lines = [f"{document['model']}, {document['scheme']}, {document['steps']} steps, {document['images']} images", ""]
    lines += ["| method | threshold | skipped | time | PSNR / dB |", "|---|---|---|---|---|"]
    lines += [
        f"| {p['method']} | {p['threshold']:g} | {p['skipped']:.0%} | {p['latency_ratio']:.2f} | "
        f"{p['psnr_db']:.1f}{'' if p['psnr_low'] is None else ' [{psnr_low:.1f}, {psnr_high:.1f}]'.format(**p)} |"
        for p in document["points"]
    ]
    return "\n".join(lines + [f"{method}: {reason}" for method, reason in document["refused"].items()])
