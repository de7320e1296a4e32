"""Image quality metrics as pure functions: paired (PSNR, SSIM, feature cosine, LPIPS) and of sets (FID, KID)."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import bootstrap
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

PSNR_CAP_DB = 100.0
FID_LEAST_IMAGES = 2048
SSIM_SIGMA, SSIM_TRUNCATE = 1.5, 3.5  # Gaussian window of 11 x 11 pixels
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's file; the lpips package carries only the linear heads


def psnr(reference: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images of one shape, capped at 100 dB so that means stay finite."""
    error = np.mean((reference.astype(np.float64) - image.astype(np.float64)) ** 2)
    return PSNR_CAP_DB if error == 0 else min(PSNR_CAP_DB, float(10 * np.log10(255**2 / error)))


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


def mean_interval(values: np.ndarray, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean of `values` (n,); NaN for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:  # every resample is the same
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=resamples, rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def fid(reference: np.ndarray, features: np.ndarray) -> float:
    """Frechet distance (Heusel et al. 2017) of two feature sets (n, d), by torch-fidelity; biased upwards for small n.

    Sets of fewer than d images have singular covariances, whose rounding can leave a distance below zero: that is 0.
    """
    statistics = [fid_features_to_statistics(torch.from_numpy(f.astype(np.float64))) for f in (reference, features)]
    return max(0.0, fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kid(reference: np.ndarray, features: np.ndarray, subset_size: int = 1000, subsets: int = 100) -> float:
    """Kernel distance (Binkowski et al. 2018) of two feature sets (n, d): the unbiased squared MMD, by torch-fidelity.

    The mean over random subsets; sets smaller than `subset_size` are taken whole, once.
    """
    size = min(subset_size, len(reference), len(features))
    whole = size == len(reference) == len(features)
    pair = [torch.from_numpy(f.astype(np.float64)) for f in (reference, features)]
    options = {"kid_subsets": 1 if whole else subsets, "kid_subset_size": size, "verbose": False}
    return kid_features_to_metric(*pair, **options)[KEY_METRIC_KID_MEAN]


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
