"""Quality of 10 schemes: our cached features against torch-fidelity's calculate_metrics with a cache of its own.

python perf/metrics.py [images] [schemes]

Both get the same pictures, the same registered extractor (the shipped CLIP) and the same metrics: FID, KID, Inception
Score, precision and recall of each scheme against one reference. Both keep what they extracted: the first pass starts
with empty caches, the second finds them full. One process, two threads; the values must agree to 1e-6.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from torch_fidelity import calculate_metrics, register_feature_extractor  # noqa: E402
from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # noqa: E402

from ditscope.benchmark.features import Extractor, feature_extractor, features_of, text_rows, zero_shot_logits  # noqa: E402
from ditscope.benchmark.quality import class_texts  # noqa: E402
from ditscope.config_files import read_config  # noqa: E402
from ditscope.core.metrics import fid, inception_score, kid, precision_recall  # noqa: E402
from ditscope.shapes.world import VALUES, Scene, render  # noqa: E402

NAME = "ditscope-perf"
KEYS = {
    "fid": "frechet_inception_distance",
    "kid": "kernel_inception_distance_mean",
    "inception_score": "inception_score_mean",
    "precision": "precision",
    "recall": "recall",
}


def pictures(folder: Path, count: int, noise: float) -> Path:
    """Scenes of the shapes world, each with pixel noise: a stand-in for the pictures of one scheme."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        scene = Scene(**{name: str(draw.choice(values)) for name, values in VALUES.items()})
        image = np.asarray(render(scene, np.random.default_rng(number))).astype(float)
        image += np.random.default_rng(number).normal(0, noise, image.shape)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"{number:04d}.png")
    return folder


def ours(folders: list[Path], extractor: Extractor, classes: list[str], cache: Path) -> list[dict[str, float]]:
    """Metrics of every folder against the first, as the quality stage computes them."""
    read = [[Path(f, name).read_bytes() for name in sorted(os.listdir(f))] for f in folders]
    sets = [features_of(pngs, extractor, cache) for pngs in read]
    rows = text_rows(classes, extractor, cache)
    found = []
    for mine in sets[1:]:
        precision, recall = precision_recall(sets[0], mine)
        values = {"fid": fid(sets[0], mine), "kid": kid(sets[0], mine), "precision": precision, "recall": recall}
        found.append(values | {"inception_score": inception_score(zero_shot_logits(mine, rows))})
    return found


def theirs(folders: list[Path], count: int, cache: Path) -> list[dict[str, float]]:
    """The same by `calculate_metrics`, which caches features and statistics by the names that it is given."""
    found = []
    for folder in folders[1:]:
        values = calculate_metrics(
            input1=str(folder), input2=str(folders[0]),
            input1_cache_name=folder.name, input2_cache_name=folders[0].name,
            feature_extractor=NAME, isc=True, fid=True, kid=True, prc=True, isc_splits=1, kid_subsets=1,
            kid_subset_size=count, batch_size=32, cuda=False, verbose=False, cache_root=str(cache), save_cpu_ram=True,
        )  # fmt: skip
        found.append({name: values[key] for name, key in KEYS.items()})
    return found


def register(extractor: Extractor, classes: list[str]) -> None:
    """Make the extractor known to torch-fidelity, with the zero-shot logits as a second feature."""
    rows = text_rows(classes, extractor)

    class Shipped(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, batch):
            images = [Image.fromarray(i) for i in batch.permute(0, 2, 3, 1).numpy()]
            features = extractor.images(images).double()
            logits = torch.from_numpy(zero_shot_logits(features.numpy(), rows))
            return tuple({"features": features, "logits": logits}[name] for name in self.features_list)

    register_feature_extractor(NAME, Shipped)


def main(count: int = 256, schemes: int = 10) -> None:
    """Print the seconds of both, with empty and with full caches, and their ratio."""
    torch.set_num_threads(2)
    config = read_config([])
    classes = class_texts(config.benchmark.classes)
    extractor = feature_extractor(config.benchmark.features, config.embedders[config.benchmark.features], "cpu")
    register(extractor, classes)
    home = Path(tempfile.mkdtemp(prefix="ditscope-perf-"))
    try:
        folders = [pictures(home / f"scheme-{i:02d}", count, noise=4.0 * i) for i in range(schemes + 1)]
        ours(folders[:2], extractor, classes, home / "warm")  # imports and the model's first call cost neither side
        print(f"{schemes} schemes, {count} images of 64 x 64 pixels each\n")
        print("| caches | ours / s | calculate_metrics / s | ratio |\n|---|---|---|---|")
        for state in ("empty", "full"):
            began = time.perf_counter()
            mine = ours(folders, extractor, classes, home / "ours")
            middle = time.perf_counter()
            other = theirs(folders, count, home / "theirs")
            ended = time.perf_counter()
            a, b = middle - began, ended - middle
            print(f"| {state} | {a:.2f} | {b:.2f} | {b / a:.2f} |")
            for one, two in zip(mine, other, strict=True):
                for name in KEYS:
                    if not np.isclose(one[name], two[name], rtol=1e-6, atol=1e-12):
                        raise SystemExit(f"{name} differs: {one[name]} and {two[name]}")
        print("\nevery value agrees to 1e-6 relative")
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
