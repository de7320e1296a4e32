"""A bit plan against uniform bits and random plans of the same nominal bytes, in images: PSNR to the unquantized model.

python perf/plan.py [MODEL ...]

Measures the sensitivity of a shipped model on 8 calibration images, plans by the effect on images and, beside it, by
the velocity's relative L2, and samples 64 prompts from the same starting noise under every plan (quantizer group, group
size 32; convolutions stay exact). The prompts are of scenes that no shipped model was trained on, and that no choice in
ditscope was made on. Intervals are 95 %, by Student's t over prompts, of paired differences where two plans are
compared. Last, the plans along the frontier.
"""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.core.intervals import mean_interval
from ditscope.core.metrics import psnr_of_floats
from ditscope.core.tables import read_table
from ditscope.models.loading import Generator, load_generator
from ditscope.models.quantizers import QUANTIZERS, quantizable
from ditscope.models.sampling import decode, sample
from ditscope.models.settings import Model
from ditscope.plan.settings import Plan
from ditscope.plan.stage import Choices, choices_of, frontier, random_plan, solve
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.stage import sensitivity
from ditscope.shapes.world import caption, held_out

ROOT = Path(__file__).resolve().parents[1]
PROMPTS, RANDOM, BITS = 64, 3, 4
SETTINGS = Sensitivity(max_images=0, mode="fast", probes=64)
SHIPPED = {
    "shapes-flux": Model("flux", str(ROOT / "models/shapes-flux"), width=64, height=64, steps=8),
    "shapes-sd3": Model("sd3", str(ROOT / "models/shapes-sd3"), width=64, height=64, steps=8, guidance=3.0),
}


def new_prompts() -> list[str]:
    """Prompts of scenes that no shipped model was trained on, without those on which `image_rms` was chosen."""
    scenes = held_out()
    known = set(spread(len(scenes)))
    others = [scene for number, scene in enumerate(scenes) if number not in known]
    return [caption(others[number]) for number in spread(len(others))]


def spread(count: int) -> list[int]:
    """PROMPTS numbers evenly from 0 to count - 1."""
    return np.linspace(0, count - 1, PROMPTS).astype(int).tolist()


def images(model: Generator, prompts: list[str]) -> np.ndarray:
    """Pictures of prompts, prompt i from seed 6000 + i, (prompts, values) in [0, 1]."""
    found = []
    for i in range(0, len(prompts), 16):
        some = prompts[i : i + 16]
        latents = sample(model, some, [""] * len(some), range(6000 + i, 6000 + i + len(some)))
        found.append(decode(model, latents).numpy().reshape(len(some), -1) / 255)
    return np.concatenate(found)


def quantized_images(model: Generator, prompts: list[str], choices: Choices, columns: np.ndarray) -> np.ndarray:
    """Pictures with every layer at the bits of a plan; the weights are put back."""
    quantize, group = QUANTIZERS[SETTINGS.quantizer], SETTINGS.group_size
    layers = quantizable(model.pipe.transformer)
    own = {name: layers[name].weight.data for name in choices.layers}
    try:
        for name, column in zip(choices.layers, columns, strict=True):
            layers[name].weight.data = quantize(own[name], choices.bits[column], group)
        return images(model, prompts)
    finally:
        for name, weight in own.items():
            layers[name].weight.data = weight


def psnr_db(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """PSNR of each picture, dB; at most 60, that of less than half a grey level."""
    return psnr_of_floats(reference, other, 60)


def interval(values: np.ndarray) -> str:
    """Mean over prompts with its interval."""
    found = mean_interval(values)
    return f"{found.mean:+.2f} dB [{found.low:+.2f}, {found.high:+.2f}]"


def compare(name: str, folder: Path) -> None:
    """Print the comparison for one shipped model."""
    entry = SHIPPED[name]
    made = Calibrate(num_images=8, num_steps=0, cfg_weight=entry.guidance, slice_size=8, statistics="")
    calibrate(name, entry, ROOT / "prompts/demo.csv", folder / name, made)
    sensitivity(name, entry, folder / name, folder / f"{name}.parquet", SETTINGS)
    table = read_table(folder / f"{name}.parquet", "sensitivity").filter(module="linear")
    choices = choices_of(table, Plan(metric="image_rms"))
    by_velocity = choices_of(table, Plan(metric="relative_l2"))
    uniform = np.full(len(choices.layers), choices.bits.index(BITS))
    limit = choices.totals(uniform)["nominal_bytes"]
    rng = np.random.default_rng(0)
    plans = {"plan": solve(choices, limit), "uniform": uniform, "plan by velocity": solve(by_velocity, limit)}
    plans |= {f"random {i}": random_plan(choices, limit, rng) for i in range(RANDOM)}
    prompts = new_prompts()
    model = load_generator(name, entry, "cpu")
    reference = images(model, prompts)

    def score(columns: np.ndarray) -> np.ndarray:
        return psnr_db(reference, quantized_images(model, prompts, choices, columns))

    scores = {label: score(columns) for label, columns in plans.items()}
    print(f"\n{name}: {len(choices.layers)} linear layers, {limit} bytes (uniform {BITS} bit), {PROMPTS} prompts")
    for label, columns in plans.items():
        size = choices.totals(columns)["nominal_bytes"]
        paired = "" if label == "plan" else f"; the plan is {interval(scores['plan'] - scores[label])} better"
        print(f"  {label}: {size} bytes, PSNR {interval(scores[label])}{paired}", flush=True)
    for width in (3, 6):
        limit = int(choices.bytes[:, choices.bits.index(width)].sum())
        print(
            f"  plan at the size of uniform {width} bit: {limit} bytes, PSNR {interval(score(solve(choices, limit)))}"
        )
    predicted = [point["predicted"] for point in frontier(choices)]
    falling = all(b <= a for a, b in pairwise(predicted))
    print(f"  predicted frontier, {len(predicted)} sizes: monotone {falling}", flush=True)


def main(*models: str) -> None:
    """Compare for the named models, or both."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in models or SHIPPED:
            compare(name, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
