"""Pictures and captions of the shapes world as arrays and tensors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ditscope.core.tensor_files import save_tensors
from ditscope.shapes.world import ATTRIBUTES, VALUES, Scene, augment, render, train_scenes


def picture_set(scenes: tuple[Scene, ...], per_scene: int, seed: int, augmented: bool = False) -> np.ndarray:
    """Renders of every scene, (len(scenes) * per_scene, 64, 64, 3) uint8; row i shows scenes[i // per_scene]."""
    rng = np.random.default_rng(seed)
    rows = []
    for scene in scenes:
        for _ in range(per_scene):
            image = render(scene, rng)
            rows.append(np.asarray(augment(image, rng) if augmented else image))
    return np.stack(rows)


def cached_pictures(folder: Path, per_scene: int, seed: int, augmented: bool = False) -> np.ndarray:
    """picture_set of the training scenes, kept as a memory-mapped npy file in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train-{per_scene}-{seed}{'-augmented' if augmented else ''}.npy"
    if not path.exists():
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, picture_set(train_scenes(), per_scene, seed, augmented), allow_pickle=False)
        temporary.replace(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def cached_tensors(path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, made and written first where it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_tensors(make(), temporary)
        temporary.replace(path)
    return load_file(path)


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensor: torch.Tensor) -> np.ndarray:
    """(N, 3, H, W) in [-1, 1] to (N, H, W, 3) uint8."""
    scaled = ((tensor.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def model_folder(out: Path, stage: str) -> Path:
    """Where a stage leaves the model that ships."""
    return out / "models" / f"shapes-{stage}"


def base_folder(out: Path, stage: str) -> Path:
    """Where a stage leaves the model that the fine-tuning starts from."""
    return out / "base" / f"shapes-{stage}"


def attribute_targets(rows: list[int]) -> torch.Tensor:
    """For each training scene the index of each attribute's value, (N, 5) int64."""
    scenes = train_scenes()
    return torch.tensor([[VALUES[n].index(getattr(scenes[i], n)) for n in ATTRIBUTES] for i in rows])


class Readout(torch.nn.Linear):
    """A linear read-out of the attributes from vectors (N, width), which helps training and does not ship."""

    def __init__(self, width: int) -> None:
        super().__init__(width, sum(len(VALUES[name]) for name in ATTRIBUTES))

    def loss(self, vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the attributes against (N, 5)."""
        parts = self(vectors).split([len(VALUES[name]) for name in ATTRIBUTES], dim=1)
        return sum(F.cross_entropy(part, targets[:, i]) for i, part in enumerate(parts)) / len(ATTRIBUTES)
