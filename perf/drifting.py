"""The drifting loss, batched over classes and vectors, against a loop over both.

python perf/drifting.py [loss | scales | step]

Shapes are those of a ResNet-18 with patch statistics: 125 vectors at 64 px, 242 at 256 px. The loop computes each class
and vector on its own with one `cdist` (the obvious way), with a scale for each of them, and the
batched loss must give its numbers. `loss`: forward and backward on feature tensors. `scales`: what official scales,
bf16 features and compilation make of it. `step`: whole training steps of a refiner through a ResNet-18 with random
weights, with the share of the loss in them.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from ditscope.refine.apply import apply  # noqa: E402
from ditscope.refine.batches import Batch, Samples, draw_batch, samples_of, to_device  # noqa: E402
from ditscope.refine.codebook import assign, fit_codebook  # noqa: E402
from ditscope.refine.data_settings import Source  # noqa: E402
from ditscope.refine.dataset import open_dataset  # noqa: E402
from ditscope.refine.drifting import Kernel, Targets, drifting_losses, unconditional_weight  # noqa: E402
from ditscope.refine.encoder import Encoder, load_encoder  # noqa: E402
from ditscope.refine.features import features_of, vectors  # noqa: E402
from ditscope.refine.networks import LatentMAE, LatentMAEConfig  # noqa: E402
from ditscope.refine.objectives import by_class  # noqa: E402
from ditscope.refine.patches import unpatchify  # noqa: E402
from ditscope.refine.prepare import prepare  # noqa: E402
from ditscope.refine.refiner import Refiner  # noqa: E402
from ditscope.refine.settings import Refine  # noqa: E402
from ditscope.refine.train import real_targets, refiner_config  # noqa: E402

RADII = (0.02, 0.05, 0.2)
POSITIVES, UNCONDITIONAL = 64, 32  # of the official release
LOOP = Kernel(RADII, shared=())
# (locations, D) of each feature: the input's rms, then mean and deviation of the whole map and of its 2 x 2 and 4 x 4
# patches, at most 16 evenly spaced ones of each (64 at 256 px).
VECTORS = {
    125: [(1, 3)] + [(n, d) for d, counts in ((64, (1, 16, 16)), (128, (1, 16, 4)), (256, (1, 4, 1)), (512, (1, 1)))
                     for n in counts for _ in range(2)],
    242: [(1, 3)] + [(n, d) for d, counts in ((64, (1, 16, 16)), (128, (1, 16, 16)), (256, (1, 16, 16)),
                                              (512, (1, 16, 4)))
                     for n in counts for _ in range(2)],
}  # fmt: skip
SETTINGS = replace(
    Refine(),
    patch=4,
    codes=8,
    objective="drifting",
    encoder="resnet",
    features=["global", "patches", "input_rms", "vanilla"],
    most_locations=16,
    classes_per_step=8,
    generated_per_class=4,
)
LATENT = replace(SETTINGS, patch=2, encoder="latent_mae", features=Refine().features, most_locations=0)
SIZES = ((8, 4, 125), (8, 4, 242), (16, 8, 125), (32, 16, 125))  # classes, generated of each, vectors


Features = dict[str, Tensor]
Loss = Callable[[Features, dict[str, Targets]], Tensor]


def draw(classes: int, generated: int, vectors: int, device: torch.device) -> tuple[Features, dict[str, Targets]]:
    """Features that ask for a gradient, and their targets."""
    random = torch.Generator().manual_seed(0)
    weight = unconditional_weight(1 + 3 * torch.rand(classes, generator=random), generated, UNCONDITIONAL).to(device)

    def normal(locations: int, count: int, size: int) -> Tensor:
        return torch.randn(classes, locations, count, size, generator=random).to(device)

    features, targets = {}, {}
    for number, (locations, size) in enumerate(VECTORS[vectors]):
        name = f"feature{number}"
        features[name] = normal(locations, generated, size).requires_grad_()
        unconditional, positives = normal(locations, UNCONDITIONAL, size), normal(locations, POSITIVES, size) + 0.5
        targets[name] = Targets(unconditional, positives, weight)
    return features, targets


def loss_of_one(x: Tensor, unconditional: Tensor, positives: Tensor, w: Tensor) -> Tensor:
    """The official loss of one class and vector: x (G, D), unconditional (U, D), positives (P, D), w a number."""
    generated, negatives = len(x), len(x) + len(unconditional)
    with torch.no_grad():
        y = torch.cat([x, unconditional, positives])
        weights = torch.cat([x.new_ones(generated), w.expand(len(unconditional)), x.new_ones(len(positives))])
        distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        scale = (distances * weights).sum() / (generated * weights.sum())
        unit = (scale / x.shape[-1] ** 0.5).clamp_min(1e-3)
        near = distances / scale.clamp_min(1e-3)
        near[:, :generated] += 100 * torch.eye(generated, device=x.device)
        field = torch.zeros_like(x)
        for radius in RADII:
            logits = -near / radius
            a = (logits.softmax(1) * logits.softmax(0)).clamp_min(1e-6).sqrt() * weights
            negative, positive = a[:, :negatives], a[:, negatives:]
            c = torch.cat([-negative * positive.sum(1, keepdim=True), positive * negative.sum(1, keepdim=True)], 1)
            part = (c @ y - c.sum(1, keepdim=True) * x) / unit
            field += part / part.square().mean().sqrt().clamp_min(1e-4)
    scaled = x / unit
    return (scaled - (scaled.detach() + field)).square().mean()


def looped(features: Features, targets: dict[str, Targets]) -> Tensor:
    """Sum over features of the mean over classes and locations, one after the other."""
    total = []
    for name, x in features.items():
        t = targets[name]
        for c in range(x.shape[0]):
            for n in range(x.shape[1]):
                one = loss_of_one(x[c, n], t.unconditional[c, n], t.positives[c, n], t.unconditional_weight[c])
                total.append(one / (x.shape[0] * x.shape[1]))
    return torch.stack(total).sum()


def batched(features: Features, targets: dict[str, Targets], kernel: Kernel = LOOP) -> Tensor:
    """The same sum at once."""
    return torch.stack(list(drifting_losses(features, targets, kernel)[0].values())).sum()


def seconds(device: torch.device, ways: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Median seconds of each way, turn by turn, after one turn that does not count; without a GPU of the processor."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                taken[name].append(clock() - began)
    return {name: median(values) for name, values in taken.items()}


def both_ways(features: Features, targets: dict[str, Targets], loss: Loss) -> Callable[[], None]:
    """Forward and backward."""

    def once() -> None:
        for x in features.values():
            x.grad = None
        loss(features, targets).backward()

    return once


def check(features: Features, targets: dict[str, Targets]) -> float:
    """The largest difference of the gradients over the largest gradient; the losses must agree as well."""
    torch.testing.assert_close(looped(features, targets), batched(features, targets), rtol=1e-4, atol=1e-6)
    gradients = []
    for way in (looped, batched):
        both_ways(features, targets, way)()
        gradients.append(torch.cat([x.grad.flatten() for x in features.values()]))
    return float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())


def loss_only(device: torch.device) -> None:
    """The loop against the batch, by size."""
    print("| classes | generated | vectors | loop: s | batched: s | ratio | gradients differ by |")
    print("|---|---|---|---|---|---|---|")
    for classes, generated, count in SIZES:
        features, targets = draw(classes, generated, count, device)
        apart = check(features, targets)
        ways = {name: both_ways(features, targets, way) for name, way in (("loop", looped), ("batch", batched))}
        took = seconds(device, ways, 5)
        sizes, ratio = f"{classes} | {generated} | {count}", took["loop"] / took["batch"]
        print(f"| {sizes} | {took['loop']:.3f} | {took['batch']:.4f} | {ratio:.1f} | {apart:.0e} |")


def scales(device: torch.device) -> None:
    """What the other modes cost, at the smallest size."""
    features, targets = draw(*SIZES[0], device)
    low = {name: x.detach().bfloat16().requires_grad_() for name, x in features.items()}
    official = Kernel(RADII)
    kernels = {"a scale for each class and vector": LOOP, "official": official}
    kernels["compiled"] = replace(official, compiled=True)
    ways = {name: both_ways(features, targets, partial(batched, kernel=kernel)) for name, kernel in kernels.items()}
    ways["features in bf16"] = both_ways(low, targets, partial(batched, kernel=official))
    for name, value in seconds(device, ways, 9).items():
        print(f"{name}: {value:.4f} s")


def step(device: torch.device) -> None:
    """Training steps of a refiner with either loss and with none, through a ResNet-18 and a latent autoencoder."""
    for settings, shape in ((SETTINGS, [3, 64, 64]), (LATENT, [8, 16, 16])):
        with TemporaryDirectory() as folder:
            samples, encoder, network = study(Path(folder), settings, shape, device)
            batch = to_device(draw_batch(samples, settings, 0, 0), device)
            drawing = seconds(torch.device("cpu"), {"draw": lambda: draw_batch(samples, settings, 1, 0)}, 5)["draw"]  # noqa: B023
        print(f"{settings.encoder}; drawing and corrupting a batch: {drawing:.3f} s of the processor")
        steps(batch, samples, encoder, network, settings, device)


def steps(
    batch: Batch,
    samples: Samples,
    encoder: Encoder | LatentMAE,
    network: Refiner,
    settings: Refine,
    device: torch.device,
) -> None:
    """Print seconds of a step with either loss, and the share of the loss: what is more than with none."""
    counted: list[int] = []

    def whole(loss: Loss | None) -> Callable[[], None]:
        def once() -> None:
            network.zero_grad()
            refined = apply(network, batch.inputs, samples.grid)
            generated = features_of(encoder, unpatchify(refined, samples.grid, settings.patch), settings)
            targets = real_targets(encoder, batch, settings)
            features = {name: by_class(f, settings.classes_per_step) for name, f in generated.items()}
            counted.append(vectors(generated))
            total = sum(f.mean() for f in features.values()) if loss is None else loss(features, targets)
            total.backward()

        return once

    ways: dict[str, Loss | None] = {"none": None, "loop": looped, "batch": batched}
    took = seconds(device, {name: whole(way) for name, way in ways.items()}, 5)
    print(f"{counted[0]} vectors; without a loss {took['none']:.3f} s a step")
    for name in ("loop", "batch"):
        share = 1 - took["none"] / took[name]
        print(f"{name}: {took[name]:.3f} s a step, {share:.0%} of it the loss")
    loss_ratio = (took["loop"] - took["none"]) / (took["batch"] - took["none"])
    print(f"ratio of steps {took['loop'] / took['batch']:.2f}, of losses {loss_ratio:.1f}")


def study(
    folder: Path, settings: Refine, shape: list[int], device: torch.device
) -> tuple[Samples, Encoder | LatentMAE, Refiner]:
    """Noise with pseudo-classes, an encoder and a refiner, both with random weights."""
    source = Source(kind="fake", adapter="pixels", count=1024, shape=shape)
    paths = [folder / name for name in ("samples.parquet", "data.json")]
    prepare({}, *paths, folder / "data", source=source)
    data = open_dataset(*paths)
    book, conditions = fit_codebook(data, settings)
    network = Refiner(refiner_config(data, settings)).to(device)
    samples = samples_of(data, "train", assign(book, conditions)[0], settings)
    if settings.encoder == "latent_mae":
        config = LatentMAEConfig(data.channels, 2, settings.patch, settings.mae_width, settings.mae_scales)
        return samples, LatentMAE(config).to(device).requires_grad_(False), network
    save_file(resnet18().state_dict(), folder / "resnet.safetensors")
    loaded = replace(settings, encoder_weights=str(folder / "resnet.safetensors"))
    return samples, load_encoder(loaded, data.adapter, data.mean, data.std, device), network


if __name__ == "__main__":
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"torch {torch.__version__}, {where}, {torch.get_num_threads()} threads")
    {"loss": loss_only, "scales": scales, "step": step}[sys.argv[1] if len(sys.argv) > 1 else "loss"](where)
