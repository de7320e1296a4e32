"""Quality of a benchmark run against the reference images of a calibration set: as sets, since prompts differ."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

import polars as pl

from ditscope.benchmark_columns import IDENTITY, QUALITY_TYPES
from ditscope.benchmark_images import Images, check_kid_subset, check_made_with, read_images, verified
from ditscope.calibration_set import read_manifest
from ditscope.config import unknown
from ditscope.errors import InputError
from ditscope.features import feature_extractor
from ditscope.intervals import mean_interval
from ditscope.quality import OF_SETS, PAIRED, judged, log_metrics, missing_images, row, set_metrics
from ditscope.settings import Benchmark, Embedder, Model
from ditscope.tables import read_table, write_table


def reference_images(folder: Path) -> Images:
    """The reference images of a calibration set, as `read_images` has those of a run.

    Raises InputError for a set without images, and for an image that is missing, damaged or outside the folder.
    """
    manifest, found = read_manifest(folder), {}
    names = {"model": "model", "steps": "num_steps", "guidance": "cfg_weight", "width": "width", "height": "height"}
    made_with = {key: manifest.get(name) for key, name in names.items()}
    for image in manifest.get("images", []):
        path = folder / image["file"]
        if PurePosixPath(image["file"]).is_absolute() or ".." in path.parts or not path.is_file():
            raise InputError(f"{folder / 'manifest.json'}: images: no file `{image['file']}` in the folder")
        png = verified(path.read_bytes(), str(path), "calibrate again")
        found[image["prompt_id"], image["seed"]] = {"png": png, "json": image | made_with}
    if not found:
        raise InputError(f"{folder / 'manifest.json'}: lists no images to compare with; calibrate again")
    return found


def check_calibration(folder: Path, name: str, model: Model, settings: Benchmark) -> None:
    """Refuse reference images of another model, size, step count or guidance, damaged ones, and too few for KID."""
    images = reference_images(folder)
    check_made_with(next(iter(images.values()))["json"], name, model, folder / "manifest.json")
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
    if settings.features not in embedders:
        raise InputError(unknown("benchmark.features", settings.features, embedders, "in the config's `embedders`"))
    extractors = {settings.features: feature_extractor(settings.features, embedders[settings.features])}
    table = read_table(run, "benchmark.run").row(0, named=True)
    identity = {name: table[name] for name in IDENTITY}
    metrics = (*PAIRED, *OF_SETS)
    if reason := missing_images(table):
        rows = [row(metric, reason=reason) for metric in metrics]
    else:
        theirs, mine = (
            judged(images, images, extractors, replace(settings, cosines=[]), cache)
            for images in (reference_images(calibration), read_images(run))
        )
        values, reasons = set_metrics(theirs, mine, settings.kid_subset_size)
        reasons |= dict.fromkeys(PAIRED, f"{calibration} has other prompts and seeds: no pairs to compare")
        n = {"n": len(mine["pngs"]), "n_prompts": len(set(mine["prompts"]))}
        rows = [row(metric, values.get(metric), **n, reason=reasons.get(metric, "")) for metric in metrics]
        if mine["alignment"] is not None:
            own = mean_interval(mine["alignment"], mine["prompts"])
            rows[PAIRED.index("prompt_alignment")] = row("prompt_alignment", own.mean, own.low, own.high, **n)
    write_table(pl.DataFrame([identity | found for found in rows], schema=QUALITY_TYPES), out, "benchmark.quality")
    log_metrics(run.stem, rows)
