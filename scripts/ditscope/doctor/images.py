"""Checks of prompts, images, captures and calibration sets: counts, contents, and the settings they were made with."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ditscope.calibration_set import check_made_with, index_file, load_calibration, read_sample
from ditscope.capture_layout import IMAGE_FORMATS, generation_name, intermediates_of, read_metadata
from ditscope.doctor.activations import check_activations
from ditscope.doctor.books import beside
from ditscope.doctor.study import Study
from ditscope.errors import InputError
from ditscope.identity import file_digest, request_hash
from ditscope.models import check_safetensors
from ditscope.prompts import read_prompts, runs_of, shards_of

PROMPTS = "prompt_id prompt negative_prompt family seed derived_seed"
IMAGES = "request_hash model revision weights scheme backend dtype prompt_id prompt negative_prompt seed steps guidance"
IMAGES += " width height key png_sha256"
REQUEST = (
    "model", "revision", "weights", "scheme", "backend", "dtype", "prompt", "negative_prompt", "seed", "steps",
    "guidance", "width", "height",
)  # fmt: skip
ENTRY = ("revision", "dtype", "steps", "guidance", "width", "height")  # of a model, repeated by whatever it makes


def check_prompts(study: Study) -> None:
    """Prompt shards hold the runs of the CSV, where the CSV is at hand."""
    settings = study.config.prompts
    tables = {file: study.table("prompts", file, "prompts", PROMPTS) for file in study.targets("prompts")}
    if not Path(settings.csv).is_file():
        return
    with study.noting("prompts", settings.csv):
        prompts = read_prompts(settings.csv)[: settings.limit or None]
        shards = list(shards_of(prompts, settings.shard_size))
        for file, table in tables.items():
            if table is not None:
                number = int(file.removesuffix(".parquet").rpartition("-")[2])
                wanted = (
                    runs_of(shards[number], settings.seeds, study.config.experiment) if number < len(shards) else []
                )
                rows = [(r["prompt_id"], r["seed"], r["prompt"], r["negative_prompt"]) for r in wanted]
                found = table.select("prompt_id", "seed", "prompt", "negative_prompt").rows()
                study.same_rows("prompts", file, found, rows, "runs of the CSV")


def check_generate(study: Study) -> None:
    """Every run of every prompt shard has its image, its row and the settings of its model."""
    for tar in study.targets("generate"):
        _, model, shard = tar.split("/")
        prompts = study.results / f"prompts/{shard.removesuffix('.tar')}.parquet"
        table = study.table("generate", beside(tar)[0], "images", IMAGES, tar)
        timing = study.table("generate", beside(tar)[1], "images.timing", "model slice images seconds", tar)
        samples = study.tar("generate", tar)
        if table is None:
            continue
        rows = table.to_dicts()
        check_requests(study, "generate", beside(tar)[0], rows, model, tar)
        if prompts.exists():
            name = prompts.relative_to(study.results).as_posix()
            runs = study.table("prompts", name, "prompts", PROMPTS)
            if runs is not None:
                wanted = runs.select("prompt_id", "seed", "prompt").rows()
                found = table.select("prompt_id", "seed", "prompt").rows()
                study.same_rows("generate", beside(tar)[0], found, wanted, "runs of the prompt shard", tar)
        pictures = list(dict.fromkeys(row["key"] for row in rows))
        if timing is not None and timing["images"].sum() != len(pictures):
            study.note("generate", beside(tar)[1], f"times {timing['images'].sum()} images of {len(pictures)}", tar)
        if samples is not None:
            keys = [sample["__key__"] for sample in samples]
            study.same_rows("generate", tar, keys, pictures, "images of the manifest")
            check_samples(study, tar, samples, rows)


def check_requests(
    study: Study, stage: str, file: str, rows: list[dict[str, Any]], model: str, rerun: str = ""
) -> None:
    """Rows are named by what they were made of, and made as the config says."""
    entry = study.config.models[model]
    wanted = {"model": model} | {key: getattr(entry, key) for key in ENTRY}
    encoders = {key: getattr(entry, key) for key in ("use_t5", "max_sequence_length")}
    for key, value in wanted.items():
        others = {repr(row[key]) for row in rows if row[key] != value}
        if others:
            problem = f"made with {key} {', '.join(sorted(others))}; the config says {value!r}"
            study.note(stage, file, problem, rerun)
    for row in rows:
        if row["request_hash"] != request_hash(**{key: row[key] for key in REQUEST}, **encoders):
            study.note(stage, file, f"prompt {row['prompt_id']}: the request hash is not that of its row", rerun)


def check_samples(study: Study, tar: str, samples: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Members of a shard agree with its manifest: pixels by digest, records by value and run; latents are finite."""
    of_key: dict[str, dict[Any, dict[str, Any]]] = {}
    for row in rows:
        of_key.setdefault(row["key"], {})[row["prompt_id"], row["seed"]] = row
    for sample in samples:
        key, runs = sample["__key__"], of_key.get(sample["__key__"])
        if runs is None:
            continue
        row = next(iter(runs.values()))
        if lacking := [name for name in ("png", "json", "latent.npy") if name not in sample]:
            study.note("generate", tar, f"image {key} lacks its {lacking[0]}")
            continue
        if hashlib.sha256(sample["png"]).hexdigest() != row["png_sha256"]:
            study.note("generate", tar, f"image {key} is not the one of the manifest (sha256)")
        record = {name: value for name, value in sample["json"].items() if name != "runs"}
        named = {(run["prompt_id"], run["seed"]): record | run for run in sample["json"].get("runs") or [record]}
        if named.keys() != runs.keys() or any(
            runs[run].get(name) != value
            for run, values in named.items()
            for name, value in values.items()
            if name in runs[run]
        ):
            study.note("generate", tar, f"the record of image {key} differs from its row of the manifest")
        if not np.isfinite(sample["latent.npy"]).all():
            study.note("generate", tar, f"the latents of image {key} have NaN or infinite values")


def check_capture(study: Study) -> None:
    """Every capture set has its generations, each complete and made as its model's images are."""
    images = image_requests(study)
    for output in study.targets("capture"):
        folder = study.results / output
        if not folder.is_dir():
            continue
        _, model, name = output.split("/")
        settings = study.config.capture.sets[name]
        found: list[str] = []
        runs = 0
        for generation in sorted(p for p in folder.iterdir() if p.is_dir()):
            file = generation.relative_to(study.results).as_posix()
            with study.noting("capture", file, output):
                metadata = read_metadata(generation)
                found.append(metadata["request_hash"])
                runs += len(metadata["runs"])
                check_generation(study, generation, metadata, model, output)
                if generation.name != generation_name(metadata["request_hash"], settings):
                    study.note("capture", file, "not named by its request and settings", output)
        total = sum(len(t) for t in prompt_tables(study))
        wanted = min(settings.generations or total, total)
        if total and runs != wanted:
            study.note("capture", output, f"holds the generations of {runs} runs of {wanted}")
        if model in images and (unknown := set(found) - images[model]):
            study.note("capture", output, f"captured {len(unknown)} requests that no image of {model} has")


def check_generation(study: Study, folder: Path, metadata: dict[str, Any], model: str, output: str) -> None:
    """One captured run: its tensors by digest, its decoded pictures, its statistics, its settings."""
    inside, base = intermediates_of(folder), folder.relative_to(study.results).as_posix()
    check_requests(study, "capture", base, [metadata], model, output)
    for name, entry in metadata["files"].items():
        file = inside / name
        where = file.relative_to(study.results).as_posix()
        with study.noting("capture", where, output):
            if not file.exists():
                raise InputError("missing from the capture")
            if file.suffix == ".safetensors":
                check_safetensors(file)
            if file.stat().st_size != entry["bytes"] or file_digest(file, 256) != entry["sha256"]:
                raise InputError("not the file that was captured (sha256)")
    for file in sorted(inside.glob("*.safetensors")):
        if file.name not in metadata["files"]:
            where = file.relative_to(study.results).as_posix()
            study.note("capture", where, "not among the files of metadata.json", output)
    for image in sorted([*folder.rglob("*.jpg"), *folder.glob("*.png")]):
        where = image.relative_to(study.results).as_posix()
        with study.noting("capture", where, output):
            check_picture(image)
    if not any((folder / f"img_0.{kind}").exists() for kind in IMAGE_FORMATS):
        study.note("capture", f"{base}/img_0.jpg", "missing", output)
    statistics = f"{base}/statistics.parquet"
    if not (study.results / statistics).exists():
        study.note("capture", statistics, "missing", output)
    columns = "generation_id prompt_id model step block stream half mean std rms absmax"
    table = study.table("capture", statistics, "capture_statistics", columns, output)
    if table is not None:
        blocks = {(step, block) for step in metadata["captured_steps"] for block in metadata["captured_blocks"]}
        found = set(table.select("step", "block").rows())
        study.same_rows("capture", statistics, sorted(found), sorted(blocks), "steps and blocks", output)


def check_calibrate(study: Study) -> None:
    """Calibration sets hold every step of every image, finite, and were made as the config says."""
    check_activations(study)
    settings = study.config.calibrate
    for file in study.targets("calibrate"):
        if not file.endswith("manifest.json"):
            continue
        manifest, folder = study.json("calibrate", file), (study.results / file).parent
        model = file.split("/")[1]
        entry = study.config.models[model]
        if manifest is None:
            continue
        wanted = {"model": model, "num_steps": settings.num_steps or entry.steps, "n_completed": settings.num_images}
        wanted |= {key: getattr(settings, key) for key in ("cfg_weight", "seed", "format", "statistics")}
        wanted |= {key: getattr(entry, key) for key in ("revision", "dtype", "width", "height")}
        study.same("calibrate", file, manifest, wanted)
        listed: set[str] = set()
        for shard in sorted((folder / "shards").glob("*/")):
            name = shard.relative_to(study.results).as_posix()
            with study.noting("calibrate", f"{name}/shard.json", name):
                record = json.loads((shard / "shard.json").read_text())
                wanted = {key: value for key, value in manifest.items() if key in record and key != "images"}
                study.same("calibrate", f"{name}/shard.json", record, wanted, name)
                listed |= {f"{shard.relative_to(folder).as_posix()}/{image['file']}" for image in record["images"]}
        with study.noting("calibrate", file):
            images = [image["file"] for image in manifest["images"]]
            study.same_rows("calibrate", file, sorted(images), sorted(listed), "images of the shards")
            for image in images:
                owner = (Path(file).parent / image).parents[1].as_posix()
                with study.noting("calibrate", (Path(file).parent / image).as_posix(), owner):
                    check_picture(folder / image)
        check_calibration_samples(study, file, folder, model)


def check_calibration_samples(study: Study, file: str, folder: Path, model: str) -> None:
    """Every sample of a set can be read and is finite; a defect is that of the sample's shard."""
    with study.noting("calibrate", file):
        names = json.loads((folder / "manifest.json").read_text())["sample_files"]
        before = len(study.findings)
        for name in names:
            sample = (Path(file).parent / name).as_posix()
            with study.noting("calibrate", sample, Path(sample).parent.as_posix()):
                index_file(folder / name)
        if len(study.findings) > before:
            return
        found = load_calibration(folder)
        check_made_with(folder, found, model)
        for reference in found.samples:
            sample = reference.file.relative_to(study.results).as_posix()
            with study.noting("calibrate", sample, Path(sample).parent.as_posix()):
                read_sample(reference)


def prompt_tables(study: Study) -> list:
    """The prompt shards that can be read; their defects are noted by `check_prompts`."""
    quiet = Study(study.results, study.plan, study.config)
    tables = [quiet.table("prompts", file, "prompts", PROMPTS) for file in study.targets("prompts")]
    return [table for table in tables if table is not None]


def image_requests(study: Study) -> dict[str, set[str]]:
    """Request hashes of each model's images, of models all of whose manifests can be read."""
    quiet = Study(study.results, study.plan, study.config)
    requests: dict[str, set[str]] = {}
    for tar in study.targets("generate"):
        table = quiet.table("generate", beside(tar)[0], "images", IMAGES)
        if table is not None:
            requests.setdefault(tar.split("/")[1], set()).update(table["request_hash"])
        else:
            requests[tar.split("/")[1]] = set()
    return {model: found for model, found in requests.items() if found}


def check_picture(path: Path) -> None:
    """Decode every frame of a picture. Raises InputError where it is damaged."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            for frame in ImageSequence.Iterator(image):
                frame.load()
    except UnidentifiedImageError:
        raise InputError("not a readable picture (of no known format)") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise InputError(f"not a readable picture ({error})") from None
