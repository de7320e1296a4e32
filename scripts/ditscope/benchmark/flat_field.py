"""Noise on a flat field by step count: quantization noise that adds up over the steps shows there first."""

from statistics import NormalDist

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ditscope.benchmark.settings import Benchmark
from ditscope.models.loading import Generator
from ditscope.models.sampling import pictures, sample, still

SIGMA = 2.0  # of the blur, in pixels


def noise_growth(generator: Generator, settings: Benchmark, batch: int) -> list[dict]:
    """Pixel noise of pictures of a flat field: rows of steps, seed, noise (in 1/255).

    All batches are of the size `batch`, the last one filled up: another size would be compiled anew.
    """
    seeds = list(range(settings.flat_field_seeds))
    prompts, negatives = [settings.flat_field_prompt] * batch, [""] * batch
    rows = []
    for steps in settings.flat_field_steps:
        for start in range(0, len(seeds), batch):
            part = seeds[start : start + batch]
            latents = sample(generator, prompts, negatives, [part[i % len(part)] for i in range(batch)], steps=steps)
            with torch.no_grad():  # not rounded to 8 bits: less than one level of noise counts as well
                images = pictures(generator, latents)[: len(part)].float().movedim(1, -1).cpu()
            for seed, image in zip(part, images.numpy(), strict=True):
                rows.append({"steps": steps, "seed": seed, "noise": flat_noise(still(image) * 255)})
    return rows


def flat_noise(image: np.ndarray) -> float:
    """Standard deviation of the pixel noise of an image (height, width, 3), in the image's own units.

    Of the image less its Gaussian blur (sigma 2 pixels), by the median absolute deviation, so that the edges of what
    stands on a flat field hardly count; scaled so that white noise gives its own standard deviation.
    """
    values = image.astype(np.float64)
    residual = values - gaussian_filter(values, (SIGMA, SIGMA, 0), mode="nearest")
    edge = int(3 * SIGMA)
    residual = residual[edge:-edge, edge:-edge]  # at the border the blur of a gradient is not the gradient
    impulse = np.zeros((33, 33))
    impulse[16, 16] = 1
    kept = np.linalg.norm(impulse - gaussian_filter(impulse, SIGMA))  # what the filter leaves of white noise
    deviation = np.median(np.abs(residual - np.median(residual)))
    return float(deviation / NormalDist().inv_cdf(0.75) / kept)
