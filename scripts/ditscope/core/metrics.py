"""Image quality metrics as pure functions: paired (PSNR, SSIM, feature cosine, LPIPS) and of sets.

Metrics of sets (FID, KID, Inception Score, precision and recall) are torch-fidelity's own functions on our features.
The judged images are its input 1, the reference its input 2.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ditscope.core.errors import InputError

PSNR_CAP_DB = 100.0
FID_LEAST_IMAGES = 2048
KID_SUBSET_SIZE, KID_SUBSETS = 1000, 100
IMAGES_PER_SPLIT, MOST_SPLITS = 500, 10  # of the Inception Score
NEIGHBOURHOOD = 3  # neighbours whose distance makes the radius of an image in precision and recall
SSIM_SIGMA, SSIM_TRUNCATE = 1.5, 3.5  # Gaussian window of 11 x 11 pixels
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's file; the lpips package carries only the linear heads


def psnr(reference: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images of one shape, capped at 100 dB so that means stay finite."""
    error = np.mean((reference.astype(np.float64) - image.astype(np.float64)) ** 2)
    return PSNR_CAP_DB if error == 0 else min(PSNR_CAP_DB, float(10 * np.log10(255**2 / error)))


def psnr_of_floats(reference: np.ndarray, images: np.ndarray, cap_db: float = PSNR_CAP_DB) -> np.ndarray:
    """PSNR (images,) in dB of float images (images, ...) in [0, 1], at most `cap_db`."""
    error = np.square(images.astype(np.float64) - reference).reshape(len(images), -1).mean(1)
    return np.minimum(-10 * np.log10(np.maximum(error, 1e-30)), cap_db)


def ssim(reference: np.ndarray, image: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two uint8 images (height, width, 3), over pixels and channels.

    Gaussian window, sigma 1.5, 11 x 11; K1 = 0.01, K2 = 0.03; the border that the window leaves is cut.
    """
    x, y = reference.astype(np.float64), image.astype(np.float64)

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, (SSIM_SIGMA, SSIM_SIGMA, 0), truncate=SSIM_TRUNCATE)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    edge = int(SSIM_TRUNCATE * SSIM_SIGMA + 0.5)
    return float(values[edge:-edge, edge:-edge].mean())


def cosines(reference: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Cosine (n,) of each row of `features` (n, d) to the row of `reference` that it is paired with."""
    products = (reference * features).sum(axis=1)
    return np.clip(products / (np.linalg.norm(reference, axis=1) * np.linalg.norm(features, axis=1)), -1, 1)


def quality_losses(cosine: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Loss (n,) of each pair: the mean of 1 - feature cosine and 1 - SSIM; 0 for equal images."""
    return ((1 - cosine) + (1 - similarity)) / 2


def fid(reference: np.ndarray, features: np.ndarray) -> float:
    """Frechet distance (Heusel et al. 2017) of two feature sets (n, d), by torch-fidelity; biased upwards for small n.

    Sets of fewer than d images have singular covariances, whose rounding can leave a distance below zero: that is 0.
    """
    statistics = [fid_features_to_statistics(doubles(f)) for f in (features, reference)]
    return max(0.0, fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kid(reference: np.ndarray, features: np.ndarray, subset_size: int = 0, subsets: int = KID_SUBSETS) -> float:
    """Kernel distance (Binkowski et al. 2018) of two feature sets (n, d): the unbiased squared MMD, by torch-fidelity.

    The mean over random subsets of `subset_size` images; 0 takes 1,000, or sets smaller than that whole, once. Raises
    InputError where a subset would be larger than a set.
    """
    least = min(len(reference), len(features))
    if subset_size > least:
        raise InputError(f"benchmark.kid_subset_size: {subset_size} is more than the {least} images; make it smaller")
    size = subset_size or min(KID_SUBSET_SIZE, least)
    whole = size == len(reference) == len(features)
    options = {"kid_subsets": 1 if whole else subsets, "kid_subset_size": size, "verbose": False}
    return kid_features_to_metric(doubles(features), doubles(reference), **options)[KEY_METRIC_KID_MEAN]


def inception_score(logits: np.ndarray, splits: int = 0) -> float:
    """Inception Score (Salimans et al. 2016) of class logits (n, classes), by torch-fidelity.

    The exponential of the mean KL divergence of each image's class distribution from that of its part, averaged over
    `splits` random parts. 0 takes a part for every 500 images, at least 1 and at most 10: a part of few images has few
    classes, whatever the generator makes.
    """
    splits = splits or max(1, min(MOST_SPLITS, len(logits) // IMAGES_PER_SPLIT))
    return isc_features_to_metric(doubles(logits), splits=splits)[KEY_METRIC_ISC_MEAN]


def precision_recall(reference: np.ndarray, features: np.ndarray) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of two feature sets (n, d), by torch-fidelity.

    The share of judged images inside the reference's manifold of 3-nearest-neighbour balls, and the reverse.
    """
    metrics = prc_features_to_metric(
        doubles(features), doubles(reference), prc_neighborhood=NEIGHBOURHOOD, verbose=False
    )
    return metrics[KEY_METRIC_PRECISION], metrics[KEY_METRIC_RECALL]


def doubles(values: np.ndarray) -> torch.Tensor:
    """An array as a float64 tensor."""
    return torch.from_numpy(values.astype(np.float64))


def lpips_unavailable() -> str:
    """Why LPIPS cannot be computed; empty where its backbone's weights lie in torch's hub folder."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
    return (
        ""
        if file.exists()
        else f"LPIPS needs torchvision's {LPIPS_BACKBONE} in torch's hub folder; it is never downloaded"
    )


@cache
def lpips_network() -> Any:
    """LPIPS (Zhang et al. 2018) with AlexNet, in evaluation mode."""
    from lpips import LPIPS

    return LPIPS(net="alex", verbose=False).eval()


@torch.no_grad()
def lpips(reference: np.ndarray, image: np.ndarray, network: Any = None) -> float:
    """Learned perceptual distance of two uint8 images (height, width, 3)."""
    network = network or lpips_network()
    pair = [torch.from_numpy(i.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None] for i in (reference, image)]
    return float(network(*pair))
