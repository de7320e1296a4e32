"""Step caching of the shipped models: threshold against steps skipped, time and PSNR, alone and beneath int8 weights.

python perf/caching.py [MODEL ...]

64 prompts of scenes that no shipped model was trained on (16 at 28 steps), in batches of 16. The time of a batch
is that over the time of the same batch with every step in full, taken in turns; intervals are 95 %, by Student's t over
prompts. Then the profile of an empty prompt, which the caches go by, beside that of 8 of the prompts.
"""

import sys
from dataclasses import replace

import torch

from ditscope.benchmark.caching import as_text, measured
from ditscope.models import step_cache
from ditscope.models.loading import Generator, load_generator
from ditscope.models.prepare import prepare
from ditscope.models.sampling import sample
from ditscope.models.settings import CACHES, Scheme
from plan import PROMPTS, SHIPPED, new_prompts

THRESHOLDS = {
    "first-block": (0.0, 0.15, 0.2, 0.3),
    "teacache": (0.0, 0.2, 0.3, 0.5),
    "magcache": (0.0, 0.12, 0.2, 0.3),
}
BATCH = 16


def loaded(name: str, steps: int, kind: str) -> Generator:
    """A shipped model at a number of steps, quantized."""
    generator = load_generator(name, replace(SHIPPED[name], steps=steps), "cpu")
    assert not prepare(generator, Scheme(kind), "eager", None)
    return generator


def table(name: str, steps: int, kind: str, prompts: list[str], which: slice = slice(None)) -> str:
    """Every method of one model at its thresholds, or some of them."""
    generator, points = loaded(name, steps, kind), []
    runs = [(prompt, 6000 + i) for i, prompt in enumerate(prompts)]
    for method in CACHES:
        assert not step_cache.enable(generator, method, 0.0)
        cache = generator.pipe.transformer.step_cache
        points += [vars(point) for point in measured(generator, cache, runs, THRESHOLDS[method][which], BATCH)]
        cache.remove()
    told = {"model": name, "scheme": kind, "steps": steps, "images": len(prompts), "points": points, "refused": {}}
    return as_text(told)


def profiles(name: str, steps: int, prompts: list[str]) -> str:
    """The largest difference of MagCache's ratios between an empty prompt and each of some others."""
    generator = loaded(name, steps, "base")
    assert not step_cache.enable(generator, "magcache", 0.0)
    cache = generator.pipe.transformer.step_cache
    empty, of_prompts = cache.profile(generator, steps).ratios, []
    for i, prompt in enumerate(prompts):
        cache.recorded = []
        sample(generator, [prompt], [""], [6000 + i])
        of_prompts.append(step_cache.profile_of([cache.recorded]).ratios)
        cache.recorded = None
    mean = [sum(ratios) / len(ratios) for ratios in zip(*of_prompts, strict=True)]
    shown = ", ".join(f"{a:.3f} ({b:.3f})" for a, b in zip(empty, mean, strict=True))
    return f"{name}, {steps} steps: ratios of an empty prompt (mean of {len(prompts)} prompts): {shown}"


def main(*models: str) -> None:
    """Measure the named models, or both."""
    torch.set_num_threads(1)
    prompts = new_prompts()[:PROMPTS]
    for name in models or SHIPPED:
        print(table(name, 8, "base", prompts), end="\n\n", flush=True)
        print(table(name, 8, "int8-dynamic", prompts, slice(0, 4, 2)), end="\n\n", flush=True)
        print(table(name, 28, "base", prompts[:BATCH], slice(1, 4)), end="\n\n", flush=True)
        print(profiles(name, 8, prompts[:8]), end="\n\n", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
