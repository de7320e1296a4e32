"""Calibration sets on disk: one NPZ per sample (or packed, one per image) and a manifest; read, checked, gathered.

Keys of a sample: `x` (1, H, W, C), `timestep` (sigma * 1000), `sigma`, `conditioning` (2, T, D) = [cond, uncond] under
guidance, else (1, T, D), `pooled_conditioning` (likewise), `step_index`; optional `guidance`, `prompt_id`, `image_id`,
`is_final`. The packed (plural) form has `xs` (S, H, W, C), `timesteps`, `sigmas`, `step_indices` (S,), the rest once.
"""

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ditscope.core.atomic import replacing, write_text
from ditscope.core.errors import InputError, check_version, parsing, read_json
from ditscope.core.npy import npy_bytes
from ditscope.core.paths import InputFolder, is_inside
from ditscope.models.call_files import SUFFIX, about_calls, read_calls
from ditscope.models.settings import Model
from ditscope.prompts.files import Prompt, check_seed

log = logging.getLogger(__name__)
T = TypeVar("T")

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
NUMPY = (TypeError, RuntimeError)  # beside what other parsers raise on damaged bytes
RANKS = {"x": 4, "conditioning": 3, "pooled_conditioning": 2}
GUIDANCE = ("cfg_weight", "cfg_scale", "guidance")  # of a manifest: ours, and those of other programs
TIMESTEP_TOLERANCE = 0.005  # of timestep / 1000 to sigma: bfloat16 timesteps are off by 0.004


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
    """One record for each image: image i has prompt i (starting over where there are fewer) and seed `seed` + i.

    Raises InputError where the last seed is beyond 2^63 - 1.
    """
    check_seed(f"calibrate.seed: {seed} for {num_images} images: the last one's", seed + num_images - 1)
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


def by_shard(images: Sequence[T], size: int) -> dict[str, list[T]]:
    """The images of each shard of a set by the shard's name, `size` of them in each but the last."""
    return {f"{i // size:05d}": list(images[i : i + size]) for i in range(0, len(images), size)}


def own_guidance(model: Model) -> bool:
    """Whether a model's guidance is that of its entry: `cfg_weight` does not mean it."""
    return model.family in ("flux", "dit")


def records_calls(model: Model) -> bool:
    """Whether a model's samples are the calls of its transformer, and not NPZ files of latents and conditioning."""
    return model.family == "dit"


def samples_in(folder: Path) -> list[Path]:
    """The sample files of a folder, in order."""
    return sorted([*folder.glob("*.npz"), *folder.glob(f"*{SUFFIX}")])


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write an uncompressed NPZ by a rename; equal arrays give equal bytes (NumPy dates every member 1980-01-01)."""
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """An NPZ archive whose every way to be broken is an InputError that names the file."""
    try:
        with parsing(file, "truncated or damaged NPZ ({}); calibrate again, or copy it again", NUMPY):
            try:
                archive = np.load(file, allow_pickle=False)
            except ValueError as error:
                if "pickle" in str(error):
                    raise InputError(f"{file}: pickled object; store plain arrays") from None
                raise
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{file}: a single array, not an NPZ archive; write it with np.savez")
            with archive:
                yield archive
    except FileNotFoundError:
        raise InputError(f"{file}: no such calibration sample; run the calibrate stage again") from None


def find(archive: Any, file: Path, key: str) -> str:
    """The name under which an archive holds `key`."""
    names = (PLURAL.get(key) if "xs" in archive else None) or KEYS[key]
    for name in names:
        if name in archive:
            return name
    raise InputError(f"{file}: key `{names[0]}` is missing (has: {', '.join(archive.files)}); calibrate again")


def fetch(archive: Any, file: Path, name: str) -> np.ndarray:
    """One array of an archive; names the key where it is a pickled object or its bytes are damaged."""
    with parsing(file, f"key `{name}` is damaged ({{}}); calibrate again", NUMPY):
        try:
            check_size(archive, name)
            return archive[name]
        except ValueError as error:
            if "pickle" in str(error) or "Object arrays" in str(error):
                raise InputError(f"{file}: key `{name}` is a pickled object; store a plain array") from None
            raise


def check_size(archive: Any, name: str) -> None:
    """Raise ValueError where the header of an array promises more bytes than its member has: NumPy would allocate them.

    A deflated member is at most some 1,032 times its compressed size.
    """
    info = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
    with archive.zip.open(info) as member:
        if npy_bytes(member) > min(info.file_size, 1100 * info.compress_size + 1100):
            raise ValueError("its header promises more than there is")


def floats(archive: Any, file: Path, name: str) -> np.ndarray:
    """One array of an archive as finite C-ordered float32, whatever numbers it holds (bfloat16 as 2-byte void).

    16-bit floats convert exactly, float64 and integers to the nearest float32. Raises InputError for what is no number,
    and for NaN, infinity or values beyond float32's range.
    """
    value = fetch(archive, file, name)
    if value.dtype.kind == "V" and value.dtype.itemsize == 2 and value.dtype.fields is None:
        value = (np.ascontiguousarray(value).view("<u2").astype(np.uint32) << 16).view(np.float32)
    if value.dtype.kind not in "fiu":
        raise InputError(f"{file}: key `{name}` is of type {value.dtype}; store it as float32")
    with np.errstate(over="ignore"):
        value = np.ascontiguousarray(value, np.float32).reshape(value.shape)
    if not np.isfinite(value).all():
        raise InputError(f"{file}: key `{name}` has NaN or infinite values; calibrate again")
    return value


def wholes(archive: Any, file: Path, name: str) -> list[int]:
    """Whole numbers of an archive's array, flattened; InputError where one is none."""
    values = floats(archive, file, name).reshape(-1)
    if not (values == np.round(values)).all():
        raise InputError(f"{file}: key `{name}` holds {values[values != np.round(values)][0]:g}, no whole number")
    return [int(value) for value in values]


def per_sample(archive: Any, file: Path, key: str) -> list[float]:
    """A number per sample: those of a packed file, or one, however often it is repeated (for both guidance halves)."""
    name = find(archive, file, key)
    values = floats(archive, file, name).reshape(-1).tolist()
    if "xs" in archive:
        return values
    if len(set(values)) != 1:
        raise InputError(f"{file}: key `{name}` holds {len(values)} numbers, not one; calibrate again")
    return values[:1]


def index_file(file: Path) -> list[tuple[int | None, int | None, int, float]]:
    """(row, image_id or None, step_index, sigma) of each sample in a file; final states without a step are left out.

    Raises InputError where `sigma` is not in [0, 1], or `timestep` neither 1000 x sigma nor sigma itself.
    """
    if file.suffix == SUFFIX:
        about = about_calls(file)
        return [(None, about["image_id"], about["step_index"], about["sigma"])]
    with opened(file) as archive:
        if "is_final" in archive and bool(fetch(archive, file, "is_final")):
            return []
        sigmas, timesteps = (per_sample(archive, file, key) for key in ("sigma", "timestep"))
        packed = "xs" in archive
        if packed and "step_indices" not in archive:
            steps = list(range(len(sigmas)))
        else:
            steps = wholes(archive, file, find(archive, file, "step_index"))
        samples = len(fetch(archive, file, "xs")) if packed else 1
        if not samples == len(steps) == len(sigmas) == len(timesteps):
            raise InputError(
                f"{file}: {samples} latents, {len(sigmas)} sigmas, {len(timesteps)} timesteps and {len(steps)} step "
                "indices; calibrate again"
            )
        for sigma, timestep in zip(sigmas, timesteps, strict=True):
            check_noise_level(file, sigma, timestep)
        image = wholes(archive, file, "image_id")[0] if "image_id" in archive else None
        return [(row if packed else None, image, steps[row], sigmas[row]) for row in range(len(steps))]


def check_noise_level(file: Path, sigma: float, timestep: float) -> None:
    """Refuse a noise level outside [0, 1], and a timestep that belongs to another one."""

    def agree(sigma: float, timestep: float) -> bool:
        return 0 <= sigma <= 1 and min(abs(timestep / 1000 - sigma), abs(timestep - sigma)) <= TIMESTEP_TOLERANCE

    if not agree(sigma, timestep):
        what = f"{file}: key `sigma` is {sigma:g} and key `timestep` is {timestep:g}"
        if agree(timestep, sigma):
            raise InputError(f"{what}: they are swapped; exchange them")
        raise InputError(f"{what}; sigma must be in [0, 1] and timestep 1000 x sigma (or sigma)")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a calibration set, or an empty dict where there is none."""
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    what = "not a manifest (JSON with n_completed and num_steps); calibrate again"
    manifest, names = read_json(path, what), None
    if all(type(manifest.get(key)) is int for key in ("n_completed", "num_steps")):
        names = manifest.get("sample_files") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {what}")
    check_version(path, manifest.get("schema_version", SCHEMA_VERSION), SCHEMA_VERSION, "calibrate again")
    return manifest


def sample_files(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """The NPZ files of a set: the manifest's list, else samples/*.npz, else *.npz."""
    if listed := manifest.get("sample_files"):
        for name in listed:
            if not is_inside(name) or os.path.islink(folder / name):
                where = f"{folder / 'manifest.json'}: sample_files"
                raise InputError(f"{where}: `{str(name)[:200]}` is not a plain file inside the folder")
        return [folder / name for name in listed]
    return sorted(folder.glob("samples/*.npz"), key=by_number) or sorted(folder.glob("*.npz"), key=by_number)


def by_number(file: Path) -> list[Any]:
    """A sorting key under which `step_10` comes after `step_9`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]


def load_calibration(folder: Path | str, max_images: int = 0, step_stride: int = 1) -> CalibrationSet:
    """Index a calibration set; keep the first `max_images` images (0: all) and every `step_stride`-th step.

    Files may come in any order where they have `image_id` keys; without, they are taken by the numbers in their names,
    and a new image begins wherever the step index does not grow. Raises InputError for an empty folder, a broken file,
    or a manifest whose counts differ from what the files hold.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file; give the folder of the calibration set")
    manifest = read_manifest(folder)
    files = sample_files(folder, manifest)
    if not files:
        raise InputError(f"{folder}: no calibration samples (*.npz); run the calibrate stage first")
    samples: list[Reference] = []
    image, named = -1, set()
    for file in files:
        for position, (row, image_id, step, sigma) in enumerate(index_file(file)):
            named.add(image_id is not None)
            if len(named) > 1:
                raise InputError(f"{file}: key `image_id` is in some files and not in others; give it to all or none")
            same = samples and image_id is None and samples[-1].step_index < step and (row is None or position)
            image = image_id if image_id is not None else image if same else image + 1
            samples.append(Reference(file, row, image, step, sigma))
    if not samples:
        raise InputError(f"{folder}: its {len(files)} files hold final states only, no sample; calibrate again")
    if True in named:
        samples.sort(key=lambda s: (s.image, s.step_index))
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
    for image, numbers in steps.items():
        if sorted(numbers) != list(range(num_steps)):
            raise InputError(
                f"{folder}: image {image} has {len(numbers)} samples, not steps 0 to {num_steps - 1}; calibrate again"
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
    infinite values, and halves of the conditioning that do not fit together.
    """
    file, row = reference.file, reference.row
    sample: dict[str, Any] = {"step_index": reference.step_index, "sigma": reference.sigma}
    with opened(file) as archive:
        for key in ("x", "timestep", "conditioning", "pooled_conditioning"):
            if key == "timestep":
                sample[key] = per_sample(archive, file, key)[row or 0]
                continue
            name = find(archive, file, key)
            value = floats(archive, file, name)
            if row is not None and key == "x" and value.ndim >= 4:
                value = value[row].reshape(1, *value.shape[-3:])
            rank = RANKS[key]
            if value.ndim != rank or len(value) not in ((1,) if key == "x" else (1, 2)) or not value.size:
                raise InputError(
                    f"{file}: key `{name}` has shape {value.shape}, not rank {rank} with 1 (2 under guidance) first"
                )
            sample[key] = value
        halves = {key: len(sample[key]) for key in ("conditioning", "pooled_conditioning")}
        if len(set(halves.values())) > 1:
            raise InputError(f"{file}: halves (of guidance) of {halves}; calibrate again")
        sample["guidance"] = float(floats(archive, file, "guidance").reshape(-1)[0]) if "guidance" in archive else None
    return sample


def manifest_guidance(manifest: dict[str, Any], near: Path) -> float | None:
    """The guidance that a manifest (beside the file `near`) names under one of the keys of `GUIDANCE`, if any."""
    given = {key: manifest[key] for key in GUIDANCE if key in manifest}
    if len(set(map(str, given.values()))) > 1 or not all(type(value) in (int, float) for value in given.values()):
        raise InputError(f"manifest.json beside {near}: {given}; give one number")
    return check_scale(f"manifest.json beside {near}", float(next(iter(given.values())))) if given else None


def check_scale(where: str, guidance: float) -> float:
    """`guidance`, refused unless it is a finite number from 0 on."""
    if not 0 <= guidance < math.inf:
        raise InputError(f"{where}: guidance {guidance:g} is no scale; give the number that the samples were made with")
    return guidance


def guidance_of(calibration: CalibrationSet, sample: dict[str, Any], file: Path, embedded: bool = False) -> float:
    """The guidance that a sample was made with: its own, else the manifest's; 0 where it plays no part.

    It plays one where the conditioning has an unconditional half, or the model takes guidance as an input (`embedded`).
    Raises InputError where it is not written down: a guess would score another velocity than the one that was sampled.
    """
    if sample["guidance"] is not None:
        return check_scale(f"{file}: key `guidance`", float(sample["guidance"]))
    given = manifest_guidance(calibration.manifest, file)
    if given is not None:
        return given
    if len(sample["conditioning"]) == 2 or embedded:
        line = '"cfg_scale": 7.5'
        if not calibration.manifest:
            line = f'{{"n_completed": {len(calibration.images())}, "num_steps": {calibration.num_steps}, {line}}}'
        raise InputError(
            f"{file}: made under guidance, but without key `guidance`, and no manifest.json says which; write "
            f"`{line}` there, with your value in place of 7.5"
        )
    return 0.0


def check_fits(sample: dict[str, Any], file: Path, name: str, config: dict[str, Any]) -> None:
    """Refuse a sample whose arrays are not those of a transformer, given its diffusers `config`."""
    packed = "guidance_embeds" in config  # FLUX: 2 x 2 latents are one token of 4 times the channels
    wanted = {
        "x": config["in_channels"] // 4 if packed else config["in_channels"],
        "conditioning": config["joint_attention_dim"],
        "pooled_conditioning": config["pooled_projection_dim"],
    }
    for key, width in wanted.items():
        if sample[key].shape[-1] != width:
            what = "channels" if key == "x" else "wide"
            raise InputError(
                f"{file}: key `{key}` is {sample[key].shape[-1]} {what}, `{name}` takes {width}; calibrate `{name}`"
            )
    multiple = 2 if packed else config["patch_size"]
    most = multiple * config.get("pos_embed_max_size", np.inf)
    height, width = sample["x"].shape[1:3]
    if height % multiple or width % multiple or max(height, width) > most:
        limit = "" if most == np.inf else f" up to {most}"
        raise InputError(
            f"{file}: key `x` is {height} x {width}; the sides that `{name}` takes are multiples of {multiple}{limit}"
        )


def validate_calibration(folder: InputFolder, model: str = "", num_steps: int = 0) -> CalibrationSet:
    """Read every sample of a set; refuse what is broken, or made with another model or step count than given."""
    calibration = load_calibration(folder)
    check_made_with(folder, calibration, model, num_steps)
    for reference in calibration.samples:
        if reference.file.suffix == SUFFIX:
            read_calls(reference.file)
            continue
        guidance_of(calibration, read_sample(reference), reference.file)
    log.info("%s: %d images of %d steps, nothing wrong", folder, len(calibration.images()), calibration.num_steps)
    return calibration


def check_made_with(folder: Path, calibration: CalibrationSet, model: str = "", num_steps: int = 0) -> None:
    """Refuse a set that its manifest says was made with another model, or that has another number of steps."""
    made_with = calibration.manifest.get("model", model)
    if model and made_with != model:
        raise InputError(f"{folder}: made with model `{made_with}`, not `{model}`; calibrate `{model}`")
    if num_steps and calibration.num_steps != num_steps:
        raise InputError(
            f"{folder}: made with {calibration.num_steps} steps, not {num_steps}; calibrate with {num_steps} steps"
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
        for file in samples_in(shard):
            for _, image, step, _ in index_file(file):
                files.setdefault((image, step), file.relative_to(folder).as_posix())
    names = list(dict.fromkeys(files[key] for key in sorted(files)))
    document = made_with | {"n_completed": len(images), "sample_files": names, "images": images}
    write_text(manifest, json.dumps(document, indent=1) + "\n")
