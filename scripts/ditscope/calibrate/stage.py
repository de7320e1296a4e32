"""Calibration: record what the transformer is given along sampling trajectories, with the images that come out."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ditscope.calibrate.activation_table import gather_activations
from ditscope.calibrate.activations import ActivationRecorder
from ditscope.calibrate.call_recorder import CallRecorder
from ditscope.calibrate.files import (
    SCHEMA_VERSION,
    by_shard,
    calibration_images,
    index_file,
    own_guidance,
    records_calls,
    samples_in,
    write_manifest,
    write_npz,
)
from ditscope.calibrate.settings import Calibrate
from ditscope.core.atomic import link_or_copy, replacing, write_text
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFolder
from ditscope.core.patterns import select_indices
from ditscope.core.scratch import discard, unfinished
from ditscope.core.shards import png_bytes
from ditscope.models.families.common import Conditioning
from ditscope.models.folders import weights_of
from ditscope.models.loading import Generator, load_generator, settled
from ditscope.models.registry import require_blocks
from ditscope.models.sampling import Observer, decode, sample, still
from ditscope.models.settings import Model
from ditscope.prompts.files import read_prompts

log = logging.getLogger(__name__)


class InputRecorder(Observer):
    """Keeps the noise levels, the conditioning, and the latents that the transformer is given at every step."""

    one_pass = True

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        self.cond = cond
        self.sigmas = sigmas[:-1].float().cpu().numpy()
        self.latents: list[np.ndarray] = []

    def before(self, index: int, x: Tensor) -> None:
        self.latents.append(x.float().permute(0, 2, 3, 1).cpu().numpy())


def calibrate(
    name: str,
    model: Model,
    prompt_csv: InputFile = Path("all_prompts.csv"),
    calib_dir: OutputFolder = Path("calibration_data"),
    settings: Calibrate = Calibrate(),
) -> None:
    """Record the calibration set of one model: samples/*.npz, images/*.png, manifest.json, activations.parquet.

    The folder has the stage's own result as well: the shards, of whose files samples and images are hard links. Run
    again, it continues an interrupted set, or one that is to have more images; a folder that holds another set is
    refused, and nothing in it is removed.
    """
    require_blocks("calibrate", name, model, ("torch", "mlx"))
    measured_steps(settings, model)
    check_format(name, model, settings)
    load = cache(lambda: load_generator(name, model))
    images = calibration_images(read_prompts(prompt_csv), settings.num_images, settings.seed)
    shards = {calib_dir / "shards" / name: rows for name, rows in by_shard(images, settings.shard_size).items()}
    check_own(calib_dir, list(shards))
    for shard, rows in shards.items():
        wanted = provenance(name, model, rows, settings)
        record = json.loads((shard / "shard.json").read_text()) if shard.exists() else wanted | {"images": []}
        if record | {"images": []} != wanted | {"images": []}:
            other = next(
                (key for key in wanted if key != "images" and record.get(key) != wanted[key]), "schema_version"
            )
            raise InputError(f"{shard}: made with other settings ({other}); choose another --calib-dir")
        if record["images"] != wanted["images"][: len(record["images"])]:
            raise InputError(f"{shard}: holds other prompts or seeds, or more images; choose another --calib-dir")
        if record != wanted:
            calibrate_shard(name, model, rows, shard, settings, calib_dir / ".partial", load)
    write_manifest(list(shards), calib_dir / "manifest.json")
    gather_files(calib_dir)
    gather_activations(list(shards), calib_dir / "activations.parquet")
    shutil.rmtree(calib_dir / ".partial", ignore_errors=True)


def check_own(folder: Path, shards: list[Path]) -> None:
    """Refuse a folder with a calibration set that is not `calibrate`'s own, or has more shards than are asked for."""
    foreign = [*folder.glob("manifest.json"), *folder.glob("samples/*"), *samples_in(folder)]
    if foreign and not (folder / "shards").is_dir():
        raise InputError(f"{folder}: holds a calibration set of another program; choose another --calib-dir")
    for shard in sorted((folder / "shards").glob("*[0-9]")):
        if shard not in shards:
            raise InputError(f"{shard}: more images than num_images; choose another --calib-dir")
        if not (shard / "shard.json").is_file():
            raise InputError(f"{shard}: no shard of a calibration set (no shard.json); choose another --calib-dir")


def gather_files(folder: Path) -> None:
    """Link the samples and images of a set's shards into samples/ and images/, where the manifest then has them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    names = {file: f"samples/{Path(file).name}" for file in manifest["sample_files"]}
    names |= {image["file"]: f"images/{Path(image['file']).name}" for image in manifest["images"]}
    for file, name in names.items():
        target = folder / name
        if not (target.exists() and target.samefile(folder / file)):
            with replacing(target) as partial:
                partial.unlink(missing_ok=True)
                link_or_copy(folder / file, partial)
    manifest["sample_files"] = [names[file] for file in manifest["sample_files"]]
    for image in manifest["images"]:
        image["file"] = names[image["file"]]
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def calibrate_shard(
    name: str,
    model: Model,
    images: list[dict[str, Any]],
    out: Path,
    settings: Calibrate = Calibrate(),
    partial: Path | None = None,
    load: Callable[[], Generator] | None = None,
) -> None:
    """Record one shard's `images` (of `calibration_images`) into the folder `out`.

    Leaves *.npz (of the family `dit` *.safetensors), images/*.png, shard.json and activations/*.parquet, parts of the
    table `calibration.activations`. Images are sampled in fixed slices; finished slices in `partial` are reused.
    `load` gives an already loaded model.
    """
    require_blocks("calibrate", name, model, ("torch", "mlx"))
    measured_steps(settings, model)
    check_format(name, model, settings)
    load = load or cache(lambda: load_generator(name, model))
    record = provenance(name, model, images, settings)
    parts = unfinished(partial, out, {"model": model, "slice_size": settings.slice_size, **record})
    slices = [images[i : i + settings.slice_size] for i in range(0, len(images), settings.slice_size)]
    for number, rows in enumerate(tqdm(slices, desc=name, unit="slice", disable=None)):
        part = parts / f"{number:05d}"
        if not part.exists():
            shutil.rmtree(working := parts / "working", ignore_errors=True)
            (working / "images").mkdir(parents=True)
            (working / "activations").mkdir()
            record_slice(load(), rows, settings, working)
            os.replace(working, part)
        log.info("%s: calibration slice %d of %d done", name, number + 1, len(slices))
    shutil.rmtree(working := out.with_name(out.name + ".partial"), ignore_errors=True)
    for number in range(len(slices)):
        shutil.copytree(parts / f"{number:05d}", working, copy_function=link_or_copy, dirs_exist_ok=True)
    left = [(image, step) for file in samples_in(working) for _, image, step, _ in index_file(file)]
    asked = product((image["image_id"] for image in images), range(record["num_steps"]))
    check_complete(out, "images and steps", asked, left)
    write_text(working / "shard.json", json.dumps(record, indent=1) + "\n")
    for file in sorted((p for p in working.rglob("*") if p.is_file()), key=lambda p: p.name == "shard.json"):
        target = out / file.relative_to(working)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)  # one by one, the record last: what else is in the folder stays
    shutil.rmtree(working)
    discard(parts)


def provenance(name: str, model: Model, images: list[dict[str, Any]], settings: Calibrate) -> dict[str, Any]:
    """What a shard says of itself; the manifest repeats it for the whole set.

    All of a model's entry that its samples depend on: a set that was made with another entry is not continued.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "model": name,
        "revision": model.revision,
        "weights": weights_of(model),
        "backend": model.backend,
        "use_t5": model.use_t5,
        "max_sequence_length": model.max_sequence_length,
        "call": model.call,
        "model_guidance": settled(model).guidance if own_guidance(model) else None,
        "num_steps": settings.num_steps or model.steps,
        "cfg_weight": settings.cfg_weight,
        "seed": settings.seed,
        "width": model.width,
        "height": model.height,
        "dtype": model.dtype,
        "format": settings.format,
        "statistics": settings.statistics,
        "images": [image | {"file": f"images/{image['image_id']:05d}.png"} for image in images],
    }


def check_format(name: str, model: Model, settings: Calibrate) -> None:
    """Refuse `packed` for a model whose samples are calls."""
    if settings.format == "packed" and records_calls(model):
        raise InputError(f"calibrate.format: `packed` is for NPZ; of `{name}` ({model.family}) calls are recorded")


def measured_steps(settings: Calibrate, model: Model) -> list[int]:
    """The steps whose activations are measured; raises InputError for a pattern that matches none."""
    steps = settings.num_steps or model.steps
    return select_indices(settings.statistics, steps, "calibrate.statistics") if settings.statistics else []


def record_slice(model: Generator, images: list[dict[str, Any]], settings: Calibrate, out: Path) -> None:
    """Sample a batch of images and write their samples and reference images below `out`."""
    if records_calls(model.entry):
        for image in images:
            record_calls(model, image, settings, out)
        return
    entry = model.entry
    guidance = entry.guidance if own_guidance(entry) else settings.cfg_weight
    prompts, negatives = [i["prompt"] for i in images], [i["negative_prompt"] for i in images]
    recorder, activations = InputRecorder(), ActivationRecorder(measured_steps(settings, entry))
    latents = sample(
        model,
        prompts,
        negatives,
        [i["seed"] for i in images],
        [recorder, activations],
        steps=settings.num_steps or entry.steps,
        guidance=guidance,
    )
    activations.write(out / f"activations/{images[0]['image_id']:05d}.parquet")
    for row, (image, pixels) in enumerate(zip(images, decode(model, latents).numpy(), strict=True)):
        embeds, pooled = (t.float().cpu().numpy() for t in recorder.cond[row : row + 1].stacked())
        shared = {
            "conditioning": embeds,
            "pooled_conditioning": pooled,
            "guidance": np.float32(guidance),
            "prompt_id": np.str_(image["prompt_id"]),
            "image_id": np.int64(image["image_id"]),
        }
        with replacing(out / f"images/{image['image_id']:05d}.png") as partial:
            partial.write_bytes(png_bytes(pixels))
        write_samples(
            out, image["image_id"], recorder.sigmas, [x[row : row + 1] for x in recorder.latents], shared, settings
        )


def record_calls(model: Generator, image: dict[str, Any], settings: Calibrate, out: Path) -> None:
    """Sample one image of a model of any family and write its calls and reference image below `out`."""
    entry = model.entry
    activations = ActivationRecorder(measured_steps(settings, entry))
    latents = sample(
        model, [image["prompt"]], [image["negative_prompt"]], [image["seed"]],
        [CallRecorder(out, image), activations], steps=settings.num_steps or entry.steps,
    )  # fmt: skip
    activations.write(out / f"activations/{image['image_id']:05d}.parquet")
    with replacing(out / f"images/{image['image_id']:05d}.png") as partial:
        partial.write_bytes(png_bytes(still(decode(model, latents)[0].numpy())))


def write_samples(
    out: Path, image: int, sigmas: np.ndarray, latents: list[np.ndarray], shared: dict[str, Any], settings: Calibrate
) -> None:
    """Write one image's samples: an NPZ per step, or one packed NPZ."""
    if settings.format == "packed":
        steps = {"step_indices": np.arange(len(sigmas)), "timesteps": sigmas * 1000, "sigmas": sigmas}
        write_npz(out / f"{image:05d}.npz", {"xs": np.concatenate(latents)} | steps | shared)
        return
    for index, (sigma, x) in enumerate(zip(sigmas, latents, strict=True)):
        step = {"x": x, "timestep": np.float32(sigma * 1000), "sigma": sigma, "step_index": np.int64(index)}
        write_npz(out / f"{image:05d}_{index:03d}.npz", step | shared)
