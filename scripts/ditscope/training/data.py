"""Pictures and captions of the shapes world as arrays and tensors."""

from pathlib import Path

import numpy as np
import torch

from ditscope.shapes import Scene, augment, render, train_scenes


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
