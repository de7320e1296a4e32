"""Calibration sets on disk: one NPZ a sample (or packed, one an image) and a manifest; read, checked, gathered.

Keys of a sample: `x` (1, H, W, C), `timestep` (sigma * 1000), `sigma`, `conditioning` (2, T, D) = [cond, uncond] under
guidance, else (1, T, D), `pooled_conditioning` (likewise), `step_index`; optional `guidance`, `prompt_id`, `image_id`,
`is_final`. The packed (plural) form has `xs` (S, H, W, C), `timesteps`, `sigmas`, `step_indices` (S,), the rest once.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ditscope.errors import UNREADABLE, InputError, line
from ditscope.paths import InputFolder
from ditscope.prompts import Prompt

log = logging.getLogger(__name__)

SCHEMA_VERSION = "1"
# Every key with the names that it is accepted under; arr_0 ... arr_5 come from np.savez with positional arguments.
KEYS = {
    "x": ("x", "latent", "arr_0"),
    "timestep": ("timestep", "arr_1"),
    "sigma": ("sigma", "arr_2"),
    "conditioning": ("conditioning", "arr_3"),
    "pooled_conditioning": ("pooled_conditioning", "arr_4"),
    "step_index": ("step_index", "arr_5"),
}
PLURAL = {"x": ("xs",), "timestep": ("timesteps",), "sigma": ("sigmas",), "step_index": ("step_indices",)}
RANKS = {"x": 4, "conditioning": 3, "pooled_conditioning": 2}


@dataclass(frozen=True)
class Reference:
    """Where one sample lies, and what tells it from the others."""

    file: Path
    row: int | None  # of a packed file
    image: int
    step_index: int
    sigma: float


@dataclass(frozen=True)
class CalibrationSet:
    """An indexed calibration set; the tensors stay on disk until `read_sample`."""

    manifest: dict[str, Any]  # empty where the folder has none
    num_steps: int
    samples: list[Reference]  # image-major

    def images(self) -> list[int]:
        """Image numbers, ascending."""
        return sorted({sample.image for sample in self.samples})


def calibration_images(prompts: list[Prompt], num_images: int, seed: int) -> list[dict[str, Any]]:
    """One record for each image: image i has prompt i (starting over where there are fewer) and seed `seed` + i."""
    return [
        {
            "image_id": i,
            "prompt_id": p.prompt_id,
            "prompt": p.prompt,
            "negative_prompt": p.negative_prompt,
            "seed": seed + i,
        }
        for i in range(num_images)
        for p in [prompts[i % len(prompts)]]
    ]


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write an uncompressed NPZ by a rename; equal arrays give equal bytes (NumPy dates every member 1980-01-01)."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(partial, path)


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """An NPZ archive whose every way to be broken is an InputError that names the file."""
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{file}: a single array, not an NPZ archive; write it with np.savez")
        with archive:
            yield archive
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{file}: no such calibration sample; run the calibrate stage again") from None
    except ValueError as error:
        pickled = "pickle" in str(error)
        what = "pickled object; store plain arrays" if pickled else f"unreadable ({line(error)}); make it again"
        raise InputError(f"{file}: {what}") from None
    except UNREADABLE as error:
        raise InputError(f"{file}: truncated or damaged NPZ ({line(error)}); delete it and calibrate again") from None


def find(archive: Any, file: Path, key: str) -> str:
    """The name under which an archive holds `key`."""
    names = (PLURAL.get(key) if "xs" in archive else None) or KEYS[key]
    for name in names:
        if name in archive:
            return name
    raise InputError(f"{file}: key `{names[0]}` is missing (has: {', '.join(archive.files)}); calibrate again")


def fetch(archive: Any, file: Path, name: str) -> np.ndarray:
    """One array of an archive; names the key where it is a pickled object or its bytes are damaged."""
    try:
        return archive[name]
    except ValueError as error:
        if "pickle" not in str(error) and "Object arrays" not in str(error):
            raise InputError(f"{file}: key `{name}` is damaged ({error}); calibrate again") from None
        raise InputError(f"{file}: key `{name}` is a pickled object; store a plain array") from None
    except UNREADABLE as error:
        raise InputError(f"{file}: key `{name}` is damaged ({line(error)}); calibrate again") from None


def index_file(file: Path) -> list[tuple[int | None, int | None, int, float]]:
    """(row, image_id or None, step_index, sigma) of each sample in a file; final states without a step are left out."""
    with opened(file) as archive:
        if "is_final" in archive and bool(fetch(archive, file, "is_final")):
            return []
        sigmas = fetch(archive, file, find(archive, file, "sigma")).reshape(-1).astype(float).tolist()
        packed = "xs" in archive
        if packed and "step_indices" not in archive:
            steps = list(range(len(sigmas)))
        else:
            name = find(archive, file, "step_index")
            steps = [int(i) for i in fetch(archive, file, name).reshape(-1)]
        if len(steps) != len(sigmas) or (not packed and len(steps) != 1):
            raise InputError(f"{file}: {len(sigmas)} sigmas for {len(steps)} step indices; calibrate again")
        image = int(fetch(archive, file, "image_id")) if "image_id" in archive else None
        return [(row if packed else None, image, steps[row], sigmas[row]) for row in range(len(steps))]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a calibration set, or an empty dict where there is none."""
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text())
        int(manifest["n_completed"]), int(manifest["num_steps"])
        if not all(isinstance(name, str) for name in manifest.get("sample_files") or []):
            raise TypeError
    except UNREADABLE:
        raise InputError(f"{path}: not a manifest (JSON with n_completed and num_steps); calibrate again") from None
    if (version := manifest.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}, this ditscope reads {SCHEMA_VERSION}; calibrate again")
    return manifest


def sample_files(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """The NPZ files of a set: the manifest's list, else samples/*.npz, else *.npz."""
    if listed := manifest.get("sample_files"):
        for name in listed:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or os.path.islink(folder / name):
                raise InputError(
                    f"{folder / 'manifest.json'}: sample_files: `{name}` is not a plain file inside the folder"
                )
        return [folder / name for name in listed]
    return sorted(folder.glob("samples/*.npz")) or sorted(folder.glob("*.npz"))


def load_calibration(folder: Path | str, max_images: int = 0, step_stride: int = 1) -> CalibrationSet:
    """Index a calibration set; keep the first `max_images` images (0: all) and every `step_stride`-th step.

    Without `image_id` keys a new image begins wherever the step index does not grow. Raises InputError for an empty
    folder, a broken file, or a manifest whose counts differ from what the files hold.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    files = sample_files(folder, manifest)
    if not files:
        raise InputError(f"{folder}: no calibration samples (*.npz); run the calibrate stage first")
    samples: list[Reference] = []
    image = -1
    for file in files:
        for position, (row, image_id, step, sigma) in enumerate(index_file(file)):
            same = samples and image_id is None and samples[-1].step_index < step and (row is None or position)
            image = image_id if image_id is not None else image if same else image + 1
            samples.append(Reference(file, row, image, step, sigma))
    num_steps = check_counts(folder, manifest, samples)
    images = sorted({s.image for s in samples})[: max_images or None]
    kept = [s for s in samples if s.image in set(images) and s.step_index % step_stride == 0]
    return CalibrationSet(manifest, num_steps, kept)


def check_counts(folder: Path, manifest: dict[str, Any], samples: list[Reference]) -> int:
    """Steps of each image; refuses images with missing or doubled steps and counts that differ from the manifest's."""
    steps: dict[int, list[int]] = {}
    for sample in samples:
        steps.setdefault(sample.image, []).append(sample.step_index)
    num_steps = int(manifest.get("num_steps", max(s.step_index for s in samples) + 1))
    for image, found in steps.items():
        if sorted(found) != list(range(num_steps)):
            raise InputError(
                f"{folder}: image {image} has {len(found)} samples, not steps 0 to {num_steps - 1}; calibrate again"
            )
    if manifest and manifest["n_completed"] != len(steps):
        path = folder / "manifest.json"
        raise InputError(
            f"{path}: n_completed is {manifest['n_completed']}, the files hold {len(steps)} images; calibrate again"
        )
    return num_steps


def read_sample(reference: Reference) -> dict[str, Any]:
    """The arrays of one sample under the names of `KEYS`, plus `guidance` (float or None).

    `x` and the conditioning are float32. Raises InputError with file and key for a missing key, a wrong rank, NaN or
    infinite values.
    """
    file, row = reference.file, reference.row
    sample: dict[str, Any] = {"step_index": reference.step_index, "sigma": reference.sigma}
    with opened(file) as archive:
        for key in ("x", "timestep", "conditioning", "pooled_conditioning"):
            name = find(archive, file, key)
            value = fetch(archive, file, name)
            if row is not None and key in PLURAL:
                value = value[row] if key == "timestep" else value[row].reshape(1, *value.shape[-3:])
            rank = RANKS.get(key)
            if rank and (value.ndim != rank or len(value) not in ((1,) if key == "x" else (1, 2))):
                raise InputError(
                    f"{file}: key `{name}` has shape {value.shape}, not rank {rank} with 1 (2 under guidance) first"
                )
            if not np.isfinite(value).all():
                raise InputError(f"{file}: key `{name}` has NaN or infinite values; calibrate again")
            sample[key] = value.astype(np.float32) if rank else float(np.asarray(value).reshape(-1)[0])
        sample["guidance"] = float(fetch(archive, file, "guidance")) if "guidance" in archive else None
    if not np.isfinite(sample["sigma"]):
        raise InputError(f"{file}: key `sigma` has NaN or infinite values; calibrate again")
    return sample


def validate_calibration(folder: InputFolder, model: str = "", num_steps: int = 0) -> CalibrationSet:
    """Read every sample of a set; refuse what is broken, or made with another model or step count than given."""
    found = load_calibration(folder)
    check_made_with(folder, found, model, num_steps)
    for reference in found.samples:
        read_sample(reference)
    log.info("%s: %d images of %d steps, nothing wrong", folder, len(found.images()), found.num_steps)
    return found


def check_made_with(folder: Path, found: CalibrationSet, model: str = "", num_steps: int = 0) -> None:
    """Refuse a set that its manifest says was made with another model, or that has another number of steps."""
    made_with = found.manifest.get("model", model)
    if model and made_with != model:
        raise InputError(f"{folder}: made with model `{made_with}`, not `{model}`; calibrate `{model}`")
    if num_steps and found.num_steps != num_steps:
        raise InputError(
            f"{folder}: made with {found.num_steps} steps, not {num_steps}; calibrate with {num_steps} steps"
        )


def write_manifest(shards: list[Path], manifest: Path) -> None:
    """Gather finished shards into `manifest.json`: provenance, images, and the sample files in image-major order.

    Paths are relative to the manifest's folder. Refuses shards that were made with different settings.
    """
    records = [json.loads((shard / "shard.json").read_text()) for shard in shards]
    made_with = {key: value for key, value in records[0].items() if key != "images"}
    for shard, record in zip(shards, records, strict=True):
        if {key: value for key, value in record.items() if key != "images"} != made_with:
            raise InputError(f"{shard}: made with other settings than {shards[0]}; remove it and calibrate again")
    folder = manifest.parent
    images = [
        image | {"file": (shard / image["file"]).relative_to(folder).as_posix()}
        for shard, record in zip(shards, records, strict=True)
        for image in record["images"]
    ]
    files: dict[tuple[int | None, int], str] = {}
    for shard in shards:
        for file in sorted(shard.glob("*.npz")):
            for _, image, step, _ in index_file(file):
                files.setdefault((image, step), file.relative_to(folder).as_posix())
    names = list(dict.fromkeys(files[key] for key in sorted(files)))
    document = made_with | {"n_completed": len(images), "sample_files": names, "images": images}
    manifest.parent.mkdir(parents=True, exist_ok=True)
    partial = manifest.with_name(manifest.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(partial, manifest)
