"""How far the finished image moves when one layer is quantized in the steps of one bucket: gradients of random probes.

An error of the velocity is not an error of the image: steps differ in length, later steps correct some errors and carry
on others, and the decoder weighs directions of the latents unequally. The discrete adjoint method takes all of it into
account to first order. With a probe u of the image, g = J' u of the decoder at the last latents, and backwards through
the Euler steps x' = x + s v(x): layers receive <s g, J dW>, and g becomes g + s J_x' g. The inner products of all steps
of a bucket add up before they are squared, because errors of successive steps are alike.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ditscope.calibrate.files import CalibrationSet, Reference, records_calls
from ditscope.calibrate.load import Batch, batches
from ditscope.models.loading import Generator
from ditscope.models.sampling import pictures
from ditscope.sensitivity.back_ends import back_end
from ditscope.sensitivity.buckets import BUCKETS
from ditscope.sensitivity.exact import Layer
from ditscope.sensitivity.fast import Changes, random_signs, weight_changes
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.tables import IMAGE_METRIC, WHOLE


def image_effects(
    model: Generator,
    layers: Sequence[Layer],
    calibration: CalibrationSet,
    buckets: dict[Reference, str],
    settings: Sensitivity,
) -> list[dict[str, Any]]:
    """One row for each layer, bit width, bucket (and all of them together), image and probe, from whole trajectories.

    `image_rms` holds squared inner products over the number of values of the image: their mean estimates the mean
    square change of its values, which lie in [0, 1]. At least `settings.probes` probes are drawn over all images.
    """
    names = {layer.module: layer.name for layer in layers}
    rows = []
    for drawn, of_probe in image_probes(
        model, list(names), calibration, buckets, weight_changes(model, settings), settings
    ):
        for module in names:
            of_probe[WHOLE, module] = torch.stack([of_probe[b, module] for b in BUCKETS]).sum(0)
        for (bucket, module), effects in of_probe.items():
            for bits, squares in zip(settings.bits, effects.square().T, strict=True):
                rows += [
                    {"layer": names[module], "bits": bits, "bucket": bucket, "image": image, IMAGE_METRIC: value}
                    for image, value in zip(drawn, squares.tolist(), strict=True)
                ]
    return rows


def image_probes(
    model: Generator,
    modules: Sequence[nn.Module],
    calibration: CalibrationSet,
    buckets: dict[Reference, str],
    changes: Changes,
    settings: Sensitivity,
) -> Iterator[tuple[list[int], dict[tuple[str, nn.Module], Tensor]]]:
    """Effects of `changes` on the finished images of whole trajectories, probe by probe, as `probe_image` gives them.

    With each the numbers of its images. At least `settings.probes` probes are drawn over all images.
    """
    for module in (model.pipe.transformer, model.pipe.vae):
        module.requires_grad_(False)
    images = calibration.images()
    generator = torch.Generator().manual_seed(0)
    probes = math.ceil(settings.probes / len(images))
    calls = records_calls(model.entry)
    size = 1 if calls else settings.gradient_batch
    for start in range(0, len(images), size):
        some = set(images[start : start + size])
        chosen = [sample for sample in calibration.samples if sample.image in some]
        copies = min(probes, size // len(some))
        if calls:
            steps = list(back_end(model).call_batches(model, calibration, buckets, chosen))
        else:
            steps = [step.repeated(copies) for step in batches(model, calibration, buckets, size, chosen)]
        drawn = [reference.image for reference in steps[0].references]
        for _ in range(math.ceil(probes / copies)):
            yield drawn, probe_image(model, steps, modules, changes, generator)


def probe_image(
    model: Generator, steps: Sequence[Batch], modules: Sequence[nn.Module], changes: Changes, generator: torch.Generator
) -> dict[tuple[str, nn.Module], Tensor]:
    """For each bucket and module, <u, change of the image> / sqrt(values of an image), (images, changes).

    `steps` are the same images at every step, the first one first; the last step ends at noise level 0.
    """
    sigmas = [*(float(batch.sigma) for batch in steps), 0.0]
    with torch.no_grad():
        last = steps[-1].x - sigmas[-2] * steps[-1].velocity(model)
    # One by one: the decoder keeps gigabytes of an image for its backward pass.
    pulled = [pull_back_image(model, latents, generator) for latents in last.split(1)]
    values, gradient = pulled[0][0], torch.cat([pulled_back for _, pulled_back in pulled])
    effects: dict[tuple[str, nn.Module], Tensor] = {}
    for batch, (sigma, following) in reversed(list(zip(steps, pairwise(sigmas), strict=True))):
        moving = batch.at(batch.x.detach().requires_grad_())
        with back_end(model).collected(model, modules, changes, len(batch.x)) as products, torch.enable_grad():
            moving.velocity(model).backward((following - sigma) * gradient)
        gradient = gradient + moving.x.grad
        for module, product in products.items():
            key = batch.bucket, module
            effects[key] = effects[key] + product if key in effects else product
    return {key: effect / math.sqrt(values) for key, effect in effects.items()}


def pull_back_image(model: Generator, latents: Tensor, generator: torch.Generator) -> tuple[int, Tensor]:
    """The number of values of an image, and the gradient of <u, image> by its latents (1, ...) for a random probe u."""
    latents = latents.detach().requires_grad_()
    with torch.enable_grad(), block_by_block(getattr(model.pipe, "vae", None)):
        image = pictures(model, latents)
        (gradient,) = torch.autograd.grad(image, latents, random_signs(image, generator))
    return image.numel(), gradient


@contextmanager
def block_by_block(vae: Any) -> Iterator[None]:
    """Within the context, a VAE that can keeps what enters its blocks only, and computes them again going back."""
    able = getattr(vae, "_supports_gradient_checkpointing", False) and not vae.is_gradient_checkpointing
    if able:
        vae.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if able:
            vae.disable_gradient_checkpointing()
