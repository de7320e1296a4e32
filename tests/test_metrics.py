"""Image quality metrics against scikit-image, closed forms and float64 brute force; features and their cache."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ditscope import features, metrics
from ditscope.errors import InputError
from ditscope.features import feature_extractor, features_of
from ditscope.metrics import cosines, fid, kid, lpips, mean_interval, psnr, quality_losses, ssim
from ditscope.settings import Embedder


def picture(seed: int, shape: tuple = (40, 56, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def noisy(image: np.ndarray, amount: float) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, amount, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("amount", [1.0, 10.0, 80.0])
def test_psnr_and_ssim_equal_scikit_image(amount):
    a = picture(0)
    b = noisy(a, amount)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), rel=1e-12)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(a, b) == pytest.approx(structural_similarity(a, b, channel_axis=-1, **options), abs=1e-12)


def test_equal_images_have_capped_psnr_and_no_loss():
    a, f = picture(1), np.random.default_rng(0).normal(size=(1, 8))
    assert psnr(a, a) == 100.0 and ssim(a, a) == pytest.approx(1)
    assert quality_losses(cosines(f, f), np.array([ssim(a, a)]))[0] == pytest.approx(0, abs=1e-12)


def test_quality_loss_is_the_mean_of_both_losses_of_matched_pairs():
    a = np.array([[1.0, 0.0], [2.0, 0.0]])
    b = np.array([[0.0, 3.0], [5.0, 0.0]])  # at right angles, parallel
    assert cosines(a, b) == pytest.approx([0, 1])
    assert quality_losses(cosines(a, b), np.array([0.5, 0.8])) == pytest.approx([0.75, 0.1])


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(3).normal(5, 2, 400)
    half = 1.96 * values.std() / 20
    assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(np.full(5, 3.0)) == (3.0, 3.0)
    assert np.isnan(mean_interval(np.array([1.0]))).all()


def test_fid_equals_the_formula_in_float64():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 6)), rng.normal(0.3, 1.5, size=(80, 6))
    s, t = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert fid(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [200, 12])  # more and fewer images than dimensions
def test_identity_has_no_fid_and_the_closed_form_of_kid(n):
    f = np.random.default_rng(1).normal(size=(n, 20))
    assert 0 <= fid(f, f) <= 1e-6
    kernel = (f @ f.T / 20 + 1) ** 3
    off, diagonal = kernel.sum() - np.trace(kernel), np.trace(kernel)
    assert kid(f, f) == pytest.approx(2 * (off / (n * (n - 1)) - (off + diagonal) / n**2), rel=1e-9)


def test_kid_equals_the_unbiased_mmd_by_brute_force():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(9, 4)), rng.normal(0.5, 1, size=(9, 4))

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    within = sum(k(z[i], z[j]) for z in (x, y) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    across = 2 * sum(k(a, b) for a in x for b in y) / 81
    assert kid(x, y) == pytest.approx(within - across, rel=1e-9)
    assert kid(x, y, subset_size=5) == kid(x, y, subset_size=5) != kid(x, y)  # subsets are drawn from a fixed seed


def test_lpips_gives_its_reason_and_works_on_a_random_backbone(monkeypatch, tmp_path):
    from lpips import LPIPS

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "never downloaded" in metrics.lpips_unavailable()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / metrics.LPIPS_BACKBONE).touch()
    assert metrics.lpips_unavailable() == ""
    network = LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
    a = picture(0, (64, 64, 3))
    assert lpips(a, a, network) == 0
    assert 0 < lpips(a, noisy(a, 10), network) < lpips(a, 255 - a, network)


def pngs(count: int) -> list[bytes]:
    found = []
    for seed in range(count):
        buffer = io.BytesIO()
        Image.fromarray(picture(seed, (8, 8, 3))).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def test_features_are_cached_by_content_and_do_not_depend_on_the_batch(tmp_path):
    calls = []

    def mean_colour(images):
        calls.append(len(images))
        return torch.stack([torch.from_numpy(np.asarray(i, np.float32)).mean((0, 1)) for i in images])

    images = pngs(5)
    whole = features_of(images, "key", mean_colour, tmp_path)
    assert whole.shape == (5, 3) and whole.dtype == np.float64
    assert np.array_equal(whole, features_of(images, "key", mean_colour, batch_size=2))
    assert calls == [5, 2, 2, 1]
    assert np.array_equal(features_of(images, "key", mean_colour, tmp_path), whole) and len(calls) == 4
    features_of(images, "other weights", mean_colour, tmp_path)
    features_of(images[::-1], "key", mean_colour, tmp_path)
    assert len(calls) == 6


def test_the_features_model_loads_late_and_once(monkeypatch, tmp_path):
    loads = []
    monkeypatch.setattr(features, "load_towers", lambda name, entry, device: loads.append(name))
    monkeypatch.setattr(features, "image_features", lambda towers, images: torch.ones(len(images), 2))
    (tmp_path / "weights").write_bytes(b"1")
    key, extract = feature_extractor("mine", Embedder("clip", str(tmp_path), modality="image"), "cpu")
    assert loads == []
    extract([1]), extract([1, 2])
    assert loads == ["mine"]
    (tmp_path / "weights").write_bytes(b"2")
    assert feature_extractor("mine", Embedder("clip", str(tmp_path), modality="image"), "cpu")[0] != key
    with pytest.raises(InputError, match="has no image features"):
        feature_extractor("minilm", Embedder("minilm"), "cpu")
