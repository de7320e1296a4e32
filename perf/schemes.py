"""Calibrated schemes against plain rounding in images, at equal bits and group size, on the shipped models.

python perf/schemes.py [MODEL ...]

Of 64 held-out prompts, each sampled with a seed of its own in 4 steps: PSNR against images of the unquantized model,
and the paired difference to the plain scheme of the same comparison, with its 95 % interval over prompts. Schemes are
solved from 8 images of prompts that are not held out. Bits count scales, zero points, factors and low-rank branches. A
row is printed as it ends; seconds are of the CPU: calibration and solving, then sampling.
"""

import csv
import sys
import tempfile
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ditscope.calibrate.load import calibration_of_scheme, measure_on
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.core.intervals import mean_interval
from ditscope.core.metrics import psnr
from ditscope.models.loading import Generator, load_generator
from ditscope.models.quantize import apply_scheme, mean_bits
from ditscope.models.sampling import decode, sample
from ditscope.models.settings import Model, Scheme, calibrated_on

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "shapes-flux": Model("flux", str(ROOT / "models/shapes-flux"), width=64, height=64, steps=4),
    "shapes-sd3": Model("sd3", str(ROOT / "models/shapes-sd3"), width=64, height=64, steps=4, guidance=3.0),
}
PROMPTS, BATCH, CALIBRATED_ON = 64, 16, 8

# Comparisons: the first scheme of each is the plain one. Where a kind stores more than codes and scales, a plain scheme
# of at least as many bits stands beside it.
INT3, INT4, W4A4 = {"bits": 3, "group_size": 32}, {"bits": 4, "group_size": 32}, {"activations": "int4"}
COMPARISONS = {
    "4 bits, groups of 32": {
        "nearest": Scheme("nearest", **INT4),
        "gptq": Scheme("gptq", **INT4),
        "gptq act_order": Scheme("gptq", act_order=True, **INT4),
        "awq": Scheme("awq", **INT4),
    },
    "3 bits, groups of 32": {
        "nearest": Scheme("nearest", **INT3),
        "gptq": Scheme("gptq", **INT3),
        "awq": Scheme("awq", **INT3),
    },
    "nvfp4": {"nearest": Scheme("nearest", format="nvfp4"), "gptq": Scheme("gptq", format="nvfp4")},
    "mxfp4": {"nearest": Scheme("nearest", format="mxfp4"), "gptq": Scheme("gptq", format="mxfp4")},
    "weights 4 bits, activations int4, groups of 32": {
        "nearest": Scheme("nearest", **INT4, **W4A4),
        "smoothquant": Scheme("smoothquant", **INT4, **W4A4),
        "gptq": Scheme("gptq", **INT4, **W4A4),
        "svdquant, rank 4": Scheme("svdquant", rank=4, **INT4, **W4A4),
    },
    "about the bytes of SVDQuant, activations int4": {
        "nearest, 5 bits": Scheme("nearest", bits=5, group_size=32, **W4A4),
        "svdquant, 4 bits, rank 4": Scheme("svdquant", rank=4, **INT4, **W4A4),
    },
    "weights 8 bits by row, activations int8": {
        "nearest": Scheme("nearest", activations="int8"),
        "smoothquant": Scheme("smoothquant", activations="int8"),
    },
}


def held_out() -> list[str]:
    """Captions of scenes that the models were not trained on, spread over all of them."""
    with open(ROOT / "models/held-out.csv") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    return captions[:: len(captions) // PROMPTS][:PROMPTS]


def calibration_prompts(folder: Path) -> Path:
    """A CSV of the demo's prompts whose scenes the models were trained on: none of them is held out."""
    with open(ROOT / "models/held-out.csv") as file:
        captions = {row["caption"] for row in csv.DictReader(file)}
    with open(ROOT / "prompts/demo.csv") as file:
        kept = [row["prompt"] for row in csv.DictReader(file) if row["prompt"] not in captions]
    (folder / "prompts.csv").write_text("prompt\n" + "".join(f"{prompt}\n" for prompt in kept))
    return folder / "prompts.csv"


@torch.no_grad()
def images(model: Generator, prompts: list[str]) -> np.ndarray:
    """The images of the prompts, image i with seed i, (prompts, height, width, 3) uint8."""
    made = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        latents = sample(model, part, [""] * len(part), list(range(start, start + len(part))))
        made.append(decode(model, latents).numpy())
    return np.concatenate(made)


def quantized(model: Generator, scheme: Scheme, folder: Path) -> tuple[Generator, float | None]:
    """A copy of a model under a scheme, and the bits of a weight."""
    scheme = calibrated_on(scheme, model.name, folder)
    pipe = deepcopy(model.pipe)
    made = replace(model, pipe=pipe)
    bits = mean_bits(pipe.transformer, scheme)
    measure = measure_on(made, calibration_of_scheme(scheme, model.name, model.entry))
    apply_scheme(pipe.transformer, scheme, measure=measure)
    return made, bits


def main(names: tuple[str, ...]) -> None:
    """Print a table for each model."""
    prompts = held_out()
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "calibration"
            settings = Calibrate(num_images=CALIBRATED_ON, num_steps=0, cfg_weight=3.0, seed=1000, statistics="")
            calibrate(name, MODELS[name], calibration_prompts(Path(place)), folder, settings)
            model = load_generator(name, MODELS[name])
            reference = images(model, prompts)
            print(f"\n{name}, {len(prompts)} prompts\n")
            print("| comparison | scheme | bits | PSNR, dB | against the plain one, dB | solving, sampling, s |")
            print("|---|---|---|---|---|---|")
            for comparison, schemes in COMPARISONS.items():
                plain = None
                for label, scheme in schemes.items():
                    began = time.process_time()
                    made, bits = quantized(model, scheme, folder)
                    solved = time.process_time()
                    pairs = zip(reference, images(made, prompts), strict=True)
                    values = np.array([psnr(one, other) for one, other in pairs])
                    ended = time.process_time()
                    plain = values if plain is None else plain
                    found = mean_interval(values - plain)
                    gain = "" if values is plain else f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
                    seconds = f"{solved - began:.1f}, {ended - solved:.1f}"
                    cells = [comparison, label, f"{bits:.2f}", f"{values.mean():.2f}", gain, seconds]
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or tuple(MODELS))
