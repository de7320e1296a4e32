"""Quality of a benchmark run against the reference images of a calibration set: as sets, since prompts differ."""

import io
from dataclasses import replace
from pathlib import Path

import polars as pl
from PIL import Image

from ditscope.benchmark.features import feature_extractor
from ditscope.benchmark.images import Images, check_kid_subset, check_made_with, read_images, verified
from ditscope.benchmark.quality import judged, log_metrics, missing_images, row, set_metrics
from ditscope.benchmark.run_tables import IDENTITY
from ditscope.benchmark.settings import Benchmark
from ditscope.benchmark.tables import OF_SETS, PAIRED, QUALITY
from ditscope.calibrate.files import manifest_guidance, read_manifest
from ditscope.core.errors import InputError
from ditscope.core.intervals import mean_interval
from ditscope.core.paths import is_inside
from ditscope.core.tables import read_table, write_table
from ditscope.models.embedders.registry import embedder_named
from ditscope.models.settings import Embedder, Model


def reference_images(folder: Path) -> Images:
    """The reference images of a calibration set, given its folder or that of its images, as `read_images` has a run's.

    A manifest of another program need not list its images: those are the pictures of images/, or of the folder given.
    Raises InputError for a set without images, and for an image that is missing, damaged or outside the folder.
    """
    root = set_of(folder)
    manifest, images = read_manifest(root), {}
    names = {"model": "model", "steps": "num_steps", "width": "width", "height": "height"}
    made_with = {key: manifest.get(name) for key, name in names.items()}
    made_with["guidance"] = manifest_guidance(manifest, root)
    for image in manifest["images"] if "images" in manifest else pictures_of(folder):
        path = root / image["file"]
        if not is_inside(image["file"]) or not path.is_file():
            raise InputError(f"{root / 'manifest.json'}: images: no file `{image['file']}` in the folder")
        png = verified(path.read_bytes(), str(path), "calibrate again")
        images[image["prompt_id"], image["seed"]] = {"png": png, "json": image | made_with}
    if not images:
        raise InputError(f"{root / 'manifest.json'}: lists no images to compare with; calibrate again")
    return images


def set_of(folder: Path) -> Path:
    """The calibration set that a reference folder is, or whose images it holds."""
    return folder if (folder / "manifest.json").exists() else folder.parent


def pictures_of(folder: Path) -> list[dict]:
    """Records of the pictures of a set whose manifest lists none, in the order of their names."""
    place = folder / "images" if (folder / "manifest.json").exists() else folder
    files = sorted(file for file in place.glob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    return [
        {"file": file.relative_to(set_of(folder)).as_posix(), "prompt_id": file.stem, "seed": 0, "prompt": ""}
        for file in files
    ]


def check_calibration(folder: Path, name: str, model: Model, settings: Benchmark) -> None:
    """Refuse reference images of another model, size, step count or guidance, damaged ones, and too few for KID."""
    images = reference_images(folder)
    first = next(iter(images.values()))
    with Image.open(io.BytesIO(first["png"])) as picture:
        size = {"width": picture.width, "height": picture.height}
    said = {key: value for key, value in first["json"].items() if value is not None}
    check_made_with(first["json"] | size | said, name, model, set_of(folder) / "manifest.json")
    check_kid_subset(settings, len(images), folder)


def quality_of_sets(
    run: Path,
    calibration: Path,
    out: Path,
    embedders: dict[str, Embedder],
    settings: Benchmark = Benchmark(),
    cache: Path | None = None,
) -> None:
    """Judge the images of a run against those of a calibration set and leave the table `benchmark.quality`.

    Metrics of image pairs are rows with the reason: the sets have other prompts and seeds.
    """
    entry = embedder_named(settings.features, embedders, "benchmark.features")
    extractors = {settings.features: feature_extractor(settings.features, entry)}
    table = read_table(run, "benchmark.run").row(0, named=True)
    identity = {name: table[name] for name in IDENTITY}
    metrics = (*PAIRED, *OF_SETS)
    if reason := missing_images(table):
        rows = [row(metric, reason=reason) for metric in metrics]
    else:
        reference, made = (
            judged(images, images, extractors, replace(settings, cosines=[]), cache)
            for images in (reference_images(calibration), read_images(run))
        )
        values, reasons = set_metrics(reference, made, settings.kid_subset_size)
        reasons |= dict.fromkeys(PAIRED, f"{calibration} has other prompts and seeds: no pairs to compare")
        n, prompts = len(made["pngs"]), len(set(made["prompts"]))
        rows = [
            row(metric, values.get(metric), n=n, n_prompts=prompts, reason=reasons.get(metric, ""))
            for metric in metrics
        ]
        if made["alignment"] is not None:
            own = mean_interval(made["alignment"], made["prompts"])
            rows[PAIRED.index("prompt_alignment")] = row("prompt_alignment", own.mean, own.low, own.high, n, prompts)
    write_table(pl.DataFrame([identity | measured for measured in rows], schema=QUALITY.schema()), out, QUALITY)
    log_metrics(run.stem, rows)
