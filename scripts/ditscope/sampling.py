"""The one sampling loop: Euler steps of a flow-matching model, watched by observers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ditscope.errors import InputError
from ditscope.families.common import DTYPES, Conditioning
from ditscope.models import Generator


@dataclass(frozen=True)
class Step:
    """One Euler step of a batch, as observers see it."""

    index: int
    sigma: Tensor  # scalar, noise level before the step
    sigma_next: Tensor  # scalar, noise level after it
    x: Tensor  # (batch, channels, [frames,] height, width) latents before the step
    velocity: Tensor  # like x, after guidance; None before the model ran
    x_next: Tensor  # like x


class Observer:
    """Watches a sampling run; override what is of interest. Observers see tensors and must not change them."""

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Before the first step; the place to register forward hooks."""

    def before(self, index: int, x: Tensor) -> None:
        """Before the model is called at step `index` with latents `x`."""

    def after(self, step: Step) -> None:
        """After a step."""

    def stop(self) -> None:
        """After the last step, or after an exception; the place to remove hooks."""


def starting_noise(seeds: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Gaussian noise (len(seeds), *shape), drawn on the CPU from one generator a seed, whatever the back end."""
    draws = [torch.randn(1, *shape, generator=torch.Generator("cpu").manual_seed(s), dtype=dtype) for s in seeds]
    return torch.cat(draws)


def noise_of(model: Generator, seeds: Sequence[int]) -> Tensor:
    """Starting noise of one picture a seed, at the size that the model's entry asks for."""
    entry = model.entry
    return starting_noise(seeds, model.family.latent_shape(model.pipe, entry.width, entry.height, entry.frames))


def encode_prompts(
    model: Generator, prompts: Sequence[str], negatives: Sequence[str], guidance: float | None = None
) -> Conditioning:
    """Text conditioning of `prompts`, with the negative half where the model's guidance needs it."""
    guidance = model.entry.guidance if guidance is None else guidance
    with torch.no_grad():
        return model.family.encode(model.pipe, list(prompts), list(negatives), model.entry, guidance)


@torch.no_grad()
def sample(
    model: Generator,
    noise: Tensor,
    cond: Conditioning,
    observers: Sequence[Observer] = (),
    *,
    steps: int | None = None,
    guidance: float | None = None,
) -> Tensor:
    """Integrate the flow ODE dx/dsigma = v from noise to latents by Euler's method (Esser et al. 2024).

    `noise` is (batch, channels, [frames,] height, width); the result has the same shape. A family that does not sample
    by flow matching takes the noise to latents itself, unobserved. Raises FloatingPointError where the result is not
    finite.
    """
    steps = model.entry.steps if steps is None else steps
    guidance = model.entry.guidance if guidance is None else guidance
    x = noise.to(model.device, DTYPES[model.entry.dtype])
    if hasattr(model.family, "sample"):
        if observers:
            raise InputError(f"{model.name}: the family `{model.entry.family}` cannot be observed while it samples")
        return finite(model, model.family.sample(model.pipe, x, cond, steps, guidance))
    sigmas = model.family.sigmas(model.pipe, steps, x).to(model.device)
    try:
        for observer in observers:
            observer.start(model, sigmas, cond, guidance)
        pairs = list(pairwise(sigmas))
        for index, (sigma, sigma_next) in enumerate(tqdm(pairs, desc="steps", unit="step", leave=False, disable=None)):
            for observer in observers:
                observer.before(index, x)
            v = model.family.velocity(model.pipe, x, sigma, cond, guidance)
            x_next = (x.float() + (sigma_next - sigma) * v.float()).to(x.dtype)
            for observer in observers:
                observer.after(Step(index, sigma, sigma_next, x, v, x_next))
            x = x_next
    finally:
        for observer in observers:
            observer.stop()
    return finite(model, x)


def finite(model: Generator, latents: Tensor) -> Tensor:
    """The latents, if every value is finite."""
    if not latents.isfinite().all():
        raise FloatingPointError(f"{model.name}: sampling left NaN or Inf in the latents")
    return latents


@torch.no_grad()
def decode(model: Generator, latents: Tensor) -> Tensor:
    """Images (batch, [frames,] height, width, 3) as uint8 on the CPU."""
    images = model.family.decode(model.pipe, latents.to(model.device))
    return (images * 255).round().to(torch.uint8).movedim(1, -1).cpu()


def still(image: np.ndarray) -> np.ndarray:
    """An image (height, width, 3) as it is, the middle frame of a video (frames, height, width, 3)."""
    return image[len(image) // 2] if image.ndim == 4 else image
