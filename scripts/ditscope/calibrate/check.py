"""Checks of calibration sets: every step of every image, made as the config says, and what is gathered from it."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.calibrate.activation_table import activation_table
from ditscope.calibrate.files import (
    CalibrationSet,
    calibration_images,
    check_made_with,
    fetch,
    index_file,
    load_calibration,
    opened,
    own_guidance,
    read_sample,
    samples_in,
)
from ditscope.calibrate.tables import ACTIVATIONS, CHANNELS, PART
from ditscope.core.checksums import files_of
from ditscope.core.errors import InputError
from ditscope.core.patterns import select_indices
from ditscope.core.study import Study, alike, check_picture
from ditscope.models.call_files import SUFFIX, about_calls, read_calls
from ditscope.models.folders import weights_of
from ditscope.models.loading import settled
from ditscope.prompts.files import read_prompts

# What a set repeats of its model's entry.
PROVENANCE = ("revision", "dtype", "width", "height", "backend", "use_t5", "max_sequence_length", "call")


def check_calibrate(study: Study) -> None:
    """Calibration sets hold every step of every image, finite, and were made as the config says."""
    settings = study.config.calibrate
    for file in study.targets("calibrate"):
        if not file.endswith("manifest.json"):
            continue
        model, folder = file.split("/")[1], (study.results / file).parent
        entry = study.config.models[model]
        steps = settings.num_steps or entry.steps
        shards = sorted((folder / "shards").glob("*/"))
        sigmas = check_samples(study, file, folder, model)
        check_activations(study, f"calibration/{model}/activations.parquet", model, shards, sigmas, steps)
        manifest = study.json("calibrate", file)
        if manifest is None:
            continue
        wanted = {"model": model, "num_steps": steps, "n_completed": settings.num_images}
        wanted |= {key: getattr(settings, key) for key in ("cfg_weight", "seed", "format", "statistics")}
        wanted |= {key: getattr(entry, key) for key in PROVENANCE}
        wanted["weights"] = weights_of(entry)
        wanted["model_guidance"] = settled(entry).guidance if own_guidance(entry) else None
        study.same("calibrate", file, manifest, wanted)
        images: list[dict[str, Any]] = []
        for shard in shards:
            images += check_shard(study, shard, manifest)
        with study.noting("calibrate", file):
            names = [image["file"] for image in manifest["images"]]
            listed = [image["file"] for image in images]
            study.same_rows("calibrate", file, sorted(names), sorted(listed), "images of the shards")
            if manifest["images"] != images:
                study.note("calibrate", file, "its images are not those of the shards")
            check_images(study, file, images)
            for name in names:
                owner = (Path(file).parent / name).parents[1].as_posix()
                with study.noting("calibrate", (Path(file).parent / name).as_posix(), owner):
                    check_picture(folder / name)
            samples = {path.relative_to(folder).as_posix() for shard in shards for path in samples_in(shard)}
            study.same_rows(
                "calibrate", file, sorted(manifest["sample_files"]), sorted(samples), "samples of the shards"
            )


def check_shard(study: Study, shard: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What a shard says of itself is what the manifest says, and its folder holds its images and samples alone."""
    name = shard.relative_to(study.results).as_posix()
    with study.noting("calibrate", f"{name}/shard.json", name):
        record = json.loads((shard / "shard.json").read_text())
        wanted = {key: value for key, value in manifest.items() if key not in ("images", "n_completed", "sample_files")}
        study.same("calibrate", f"{name}/shard.json", record, wanted, name)
        images = [image | {"file": f"shards/{shard.name}/{image['file']}"} for image in record["images"]]
        pictures = {image["file"] for image in record["images"]}
        for file in files_of(shard):
            inside = file.relative_to(shard)
            known = inside.as_posix() == "shard.json" or inside.as_posix() in pictures
            known = (
                known
                or inside.parts[0] == "activations"
                or (len(inside.parts) == 1 and inside.suffix in (".npz", SUFFIX))
            )
            if not known:
                study.note("calibrate", f"{name}/{inside.as_posix()}", "not a file of its shard", name)
        return images
    return []


def check_images(study: Study, file: str, images: list[dict[str, Any]]) -> None:
    """The images have the prompts and seeds that the CSV and the config give, where the CSV is at hand."""
    settings = study.config.calibrate
    if not Path(study.config.prompts.csv).is_file():
        return
    prompts = study.once("calibration prompts", lambda: read_prompts(study.config.prompts.csv, settings.num_images))
    for image, wanted in zip(images, calibration_images(prompts, settings.num_images, settings.seed), strict=False):
        if unlike := [key for key, value in wanted.items() if image.get(key) != value]:
            problem = f"image {image['image_id']}: its {unlike[0]} is not that of the prompt CSV and the config"
            study.note("calibrate", file, problem, (Path(file).parent / image["file"]).parents[1].as_posix())


def check_samples(study: Study, file: str, folder: Path, model: str) -> dict[int, float]:
    """Every sample of a set can be read and is finite; a defect is that of the sample's shard.

    Gives the noise level of each step.
    """
    sigmas: dict[int, float] = {}
    with study.noting("calibrate", file):
        names = json.loads((folder / "manifest.json").read_text())["sample_files"]
        before = len(study.findings)
        for name in names:
            sample = (Path(file).parent / name).as_posix()
            with study.noting("calibrate", sample, Path(sample).parent.as_posix()):
                check_sample(folder / name, sigmas)
        if len(study.findings) > before:
            return sigmas
        calibration = load_calibration(folder)
        check_made_with(folder, calibration, model)
        conditions: dict[int, np.ndarray] = {}
        for reference in calibration.samples:
            sample = reference.file.relative_to(study.results).as_posix()
            with study.noting("calibrate", sample, Path(sample).parent.as_posix()):
                if reference.file.suffix == SUFFIX:
                    read_calls(reference.file)
                    continue
                values = read_sample(reference)
                if not alike(float(values["timestep"]), 1000 * reference.sigma):
                    raise InputError("its timestep is not 1000 sigma")
                first = conditions.setdefault(reference.image, values["conditioning"])
                if not np.array_equal(first, values["conditioning"]):
                    raise InputError("its conditioning is not that of the other steps of its image")
        check_schedule(study, file, calibration)
    return sigmas


def image_of(path: Path) -> int:
    """The image that a sample says it is of; -1 where it says none."""
    if path.suffix == SUFFIX:
        return int(about_calls(path)["image_id"])
    with opened(path) as archive:
        return int(fetch(archive, path, "image_id")) if "image_id" in archive else -1


def check_sample(path: Path, sigmas: dict[int, float]) -> None:
    """A sample lies under the name of its image and step, at the noise level that the step has in every image."""
    image = image_of(path)
    for row, _, step, sigma in index_file(path):
        name = f"{image:05d}" if row is not None else f"{image:05d}_{step:03d}"
        if image >= 0 and path.stem != name:
            raise InputError(f"holds image {image}, step {step}, which its name does not say")
        if not alike(sigmas.setdefault(step, sigma), sigma):
            raise InputError(f"step {step} has sigma {sigma:g}, in other images {sigmas[step]:g}")


def check_schedule(study: Study, file: str, calibration: CalibrationSet) -> None:
    """Noise levels fall from step to step."""
    levels = [sample.sigma for sample in calibration.samples if sample.image == calibration.samples[0].image]
    if any(after >= before for before, after in pairwise(levels)):
        study.note("calibrate", file, "noise levels do not fall from step to step")


def check_activations(
    study: Study, file: str, model: str, shards: list[Path], sigmas: dict[int, float], num_steps: int
) -> None:
    """Every layer has statistics of every step that was asked for; the table is what its parts give."""
    settings = study.config.calibrate
    table = study.table("calibrate", file, ACTIVATIONS.name)
    parts = []
    for shard in shards:
        for path in sorted(shard.glob("activations/*.parquet")):
            part_file, owner = path.relative_to(study.results).as_posix(), shard.relative_to(study.results).as_posix()
            part = study.table("calibrate", part_file, PART.name, owner)
            if part is not None:
                check_part(study, part_file, owner, part, model, sigmas)
            parts.append(part)
    if table is None:
        return
    study.same_rows("calibrate", file, sorted(set(table["model"])), [model] if len(table) else [], "models")
    wanted = select_indices(settings.statistics, num_steps, "calibrate.statistics") if settings.statistics else []
    cells = [(layer, step) for layer in table["layer"].unique() for step in wanted]
    rows = sorted(table.select("layer", "step_index").rows())
    study.same_rows("calibrate", file, rows, sorted(cells), "layers and steps")
    if (table["n"] % settings.num_images != 0).any():
        study.note("calibrate", file, f"{table['n'][0]} samples of a layer, of {settings.num_images} images")
    for name in CHANNELS:
        if (table[name].list.len() != table["channels"]).any():
            study.note("calibrate", file, f"column `{name}` has not one value per channel")
    if parts and all(part is not None for part in parts):
        whole = pl.concat([part for part in parts if part is not None])
        files = [path for shard in shards for path in sorted(shard.glob("activations/*.parquet"))]
        with study.noting("calibrate", file):
            wanted = study.once(f"activations of {model}", lambda: activation_table(whole), files)
            study.agree("calibrate", file, table, wanted)


def check_part(study: Study, file: str, owner: str, part: pl.DataFrame, model: str, sigmas: dict[int, float]) -> None:
    """Statistics of a slice of images: of this model, at the samples' noise levels, in an order that can be."""
    if part["model"].to_list() != [model] * len(part):
        study.note("calibrate", file, f"holds another model than {model}", owner)
    for step, sigma in part.select("step_index", "sigma").rows():
        if step in sigmas and not alike(sigma, sigmas[step]):
            return study.note("calibrate", file, f"step {step} has sigma {sigma}, its samples {sigmas[step]:g}", owner)
    if part["n"].n_unique() > 1 or not (part["n"] > 0).all():
        study.note("calibrate", file, "its layers count different numbers of images (column `n`)", owner)
    if any((part[name].list.len() != part["channel_min"].list.len()).any() for name in CHANNELS):
        return study.note("calibrate", file, "has channels of different numbers", owner)
    arrays = {name: part[name].explode(empty_as_null=False).to_numpy() for name in CHANNELS}
    counts = np.repeat(part["n"].to_numpy(), part["channel_min"].list.len().to_numpy())
    largest = np.maximum(abs(arrays["channel_min"]), abs(arrays["channel_max"])) * 1.0001 + 1e-6
    if (arrays["channel_min"] > arrays["channel_max"]).any():
        study.note("calibrate", file, "has channels whose `channel_min` is above `channel_max`", owner)
    for name, least in (("channel_p99", np.zeros(1)), ("channel_p999", arrays["channel_p99"] * 0.9999 - 1e-6)):
        if (arrays[name] < least).any() or (arrays[name] > largest * counts).any():
            study.note(
                "calibrate", file, f"column `{name}` is not between the smaller percentile and the largest", owner
            )
