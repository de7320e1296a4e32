"""Level of the predicted effect on images (`image_rms`) against sampling again with quantized weights.

python perf/image_effect.py [MODEL ...]

For a few layers and bit widths of each shipped model: the predicted root mean square change of the image over the real
one, by bucket of timesteps and over all steps; beside it what adding the buckets' squares would give, as if their
errors were unlike. Last, every linear layer at 4 bits, against the sum of the layers' squares that plans minimise.
8 images, 128 probes. Factors are geometric means over layers with 95 % intervals by Student's t.
"""

import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ditscope.calibrate.files import load_calibration
from ditscope.calibrate.load import batches
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate
from ditscope.core.intervals import mean_interval
from ditscope.models.loading import Generator, load_generator
from ditscope.models.quantizers import QUANTIZERS, quantizable
from ditscope.models.requests import requests
from ditscope.models.sampling import Observer, pictures, sample
from ditscope.models.settings import Model
from ditscope.sensitivity.buckets import BUCKETS
from ditscope.sensitivity.fast import weight_changes
from ditscope.sensitivity.image import probe_image
from ditscope.sensitivity.scores import assign_buckets
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.tables import WHOLE

ROOT = Path(__file__).resolve().parents[1]
IMAGES, STEPS, PROBES, LAYERS = 8, 8, 16, 12  # probes of each image
SETTINGS = Sensitivity(bits=[3, 4, 6], gradient_batch=IMAGES)
SHIPPED = {
    "shapes-flux": Model("flux", str(ROOT / "models/shapes-flux"), width=64, height=64, steps=STEPS, guidance=0.0),
    "shapes-sd3": Model("sd3", str(ROOT / "models/shapes-sd3"), width=64, height=64, steps=STEPS, guidance=3.0),
}


class Swap(Observer):
    """Puts changed weights in for some steps."""

    def __init__(self, weights: dict[nn.Module, Tensor], steps: Collection[int]) -> None:
        self.weights, self.steps = weights, steps
        self.own = {module: module.weight.data for module in weights}

    def before(self, index: int, x: Tensor) -> None:
        for module, weight in (self.weights if index in self.steps else self.own).items():
            module.weight.data = weight

    def stop(self) -> None:
        for module, weight in self.own.items():
            module.weight.data = weight


@torch.no_grad()
def sampled(model: Generator, images: Sequence[dict], observers: Sequence[Observer] = ()) -> Tensor:
    """The images of a calibration set, sampled again."""
    return pictures(model, sample(model, *requests(images), observers, steps=STEPS)).double()


def of_layers(logs: np.ndarray) -> str:
    """The geometric mean over layers of ratios, given as logarithms (layers,), its interval, and the extremes."""
    found = mean_interval(logs)
    least, most = np.exp([logs.min(), logs.max()])
    interval = "too few layers" if found.low is None else f"{np.exp(found.low):.2f}, {np.exp(found.high):.2f}"
    return f"{np.exp(found.mean):.2f} [{interval}], layers {least:.2f} to {most:.2f}"


def compare(name: str, folder: Path) -> None:
    """Print the comparison for one shipped model."""
    entry = SHIPPED[name]
    made = Calibrate(num_images=IMAGES, num_steps=STEPS, cfg_weight=entry.guidance, slice_size=IMAGES, statistics="")
    calibrate(name, entry, ROOT / "prompts/demo.csv", folder / name, made)
    found = load_calibration(folder / name)
    model = load_generator(name, entry, "cpu")
    for module in (model.pipe.transformer, model.pipe.vae):
        module.requires_grad_(False)
    steps = list(batches(model, found, assign_buckets(found, "thirds", folder), IMAGES))
    layers = {n: m for n, m in quantizable(model.pipe.transformer).items() if isinstance(m, nn.Linear)}
    generator = torch.Generator().manual_seed(0)
    changes = weight_changes(model, SETTINGS)
    probes = [probe_image(model, steps, list(layers.values()), changes, generator) for _ in range(PROBES)]
    images = found.manifest["images"]
    reference = sampled(model, images)

    def predicted(module: nn.Module, column: int, buckets: Sequence[str]) -> float:
        effects = [sum(probe[bucket, module][:, column] for bucket in buckets) for probe in probes]
        return float(torch.stack(effects).square().mean())

    def real(weights: dict[nn.Module, Tensor], buckets: Sequence[str]) -> float:
        changed = [i for i, step in enumerate(steps) if step.bucket in buckets]
        return float((sampled(model, images, [Swap(weights, changed)]) - reference).square().mean())

    def quantized(module: nn.Module, bits: int) -> Tensor:
        return QUANTIZERS[SETTINGS.quantizer](module.weight.data, bits, SETTINGS.group_size)

    ratios: dict[str, list[float]] = {}
    for module in [*layers.values()][:: max(1, len(layers) // LAYERS)]:
        logs: dict[str, list[float]] = {}
        for column, bits in enumerate(SETTINGS.bits):
            weights = {module: quantized(module, bits)}
            for label, buckets in {**{b: [b] for b in BUCKETS}, WHOLE: BUCKETS}.items():
                squares = {label: predicted(module, column, buckets)}
                if label == WHOLE:
                    squares["buckets' squares added"] = sum(predicted(module, column, [b]) for b in BUCKETS)
                level = real(weights, buckets)
                for key, square in squares.items():
                    logs.setdefault(key, []).append(0.5 * np.log(square / level))
        for key, values in logs.items():
            ratios.setdefault(key, []).append(float(np.mean(values)))
    print(f"\n{name}: predicted over real, {len(ratios[WHOLE])} layers at {SETTINGS.bits} bits")
    for key, values in ratios.items():
        print(f"  {key}: {of_layers(np.array(values))}")
    column = SETTINGS.bits.index(4)
    everything = np.sqrt(sum(predicted(module, column, BUCKETS) for module in layers.values()))
    seen = np.sqrt(real({module: quantized(module, 4) for module in layers.values()}, BUCKETS))
    print(f"  all {len(layers)} linear layers at 4 bits: {everything:.4f} predicted, {seen:.4f} real", flush=True)


def main(*models: str) -> None:
    """Compare for the named models, or both."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in models or SHIPPED:
            compare(name, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
