"""What `ditscope doctor` checks of the stage `generate`."""

import hashlib
import tempfile
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.errors import InputError
from ditscope.core.identity import BASE, request_hash
from ditscope.core.study import Study, alike, beside, check_png, check_timing
from ditscope.models.folders import weights_of
from ditscope.models.loading import reads_negative, settled
from ditscope.models.settings import Model

ENTRY = (
    "revision",
    "backend",
    "dtype",
    "steps",
    "guidance",
    "width",
    "height",
)  # of a model, repeated by what it makes
RUN = ("prompt_id", "prompt", "negative_prompt", "seed", "derived_seed")  # of a prompt table, repeated by images


def check_generate(study: Study) -> None:
    """Every run of every prompt shard has its image, its row and the settings of its model."""
    for tar in study.targets("generate"):
        _, model, shard = tar.split("/")
        manifest, clock = beside(tar)
        name = f"prompts/{shard.removesuffix('.tar')}.parquet"
        table = study.table("generate", manifest, "images", tar)
        timing = study.table("generate", clock, "images.timing", tar)
        samples = study.tar("generate", tar)
        if table is None:
            continue
        rows = table.to_dicts()
        if model in study.config.generate.sources:  # the user's own, made of no request
            if samples is not None:
                check_samples(study, tar, samples, rows, study.config.models[model].frames)
            continue
        check_requests(study, "generate", manifest, rows, model, tar)
        if unlike := [row["prompt_id"] for row in rows if row["key"] != row["request_hash"]]:
            study.note("generate", manifest, f"prompt {unlike[0]}: the key is not the request hash", tar)
        runs = study.quiet().table("prompts", name, "prompts")
        if runs is not None:
            wanted = runs.select("prompt_id", "seed", "prompt").rows()
            given = table.select("prompt_id", "seed", "prompt").rows()
            study.same_rows("generate", manifest, given, wanted, "runs of the prompt shard", tar)
            asked = read_by(study.config.models[model], runs.select(RUN))
            study.agree("generate", manifest, table, asked, tar)
        if timing is not None:
            check_timing(study, clock, timing, table, model, tar)
        if samples is not None:
            keys = [sample["__key__"] for sample in samples]
            study.same_rows("generate", tar, keys, list(dict.fromkeys(table["key"])), "images of the manifest")
            check_samples(study, tar, samples, rows, study.config.models[model].frames)


def check_requests(
    study: Study, stage: str, file: str, rows: list[dict[str, Any]], model: str, rerun: str = ""
) -> None:
    """Rows are named by what they were made of, and made as the config says."""
    entry = settled(study.config.models[model])
    wanted = {"model": model, "scheme": BASE} | {key: getattr(entry, key) for key in ENTRY}
    if weights := weights_of(entry):  # empty where the weights are not at hand
        wanted["weights"] = weights
    for key, value in wanted.items():
        others = {repr(row[key]) for row in rows if row[key] != value}
        if others:
            problem = f"made with {key} {', '.join(sorted(others))}; the config says {value!r}"
            study.note(stage, file, problem, rerun)
    for row in rows:
        if row["request_hash"] != request_of(entry, row):
            study.note(stage, file, f"prompt {row['prompt_id']}: the request hash is not that of its row", rerun)


def read_by(entry: Model, runs: pl.DataFrame) -> pl.DataFrame:
    """Runs as a model's images repeat them: the negative prompt is empty where the model reads none."""
    return runs if reads_negative(settled(entry)) else runs.with_columns(negative_prompt=pl.lit(""))


def request_of(entry: Model, row: dict[str, Any]) -> str:
    """The request hash of an image's row, of a model's entry what rows do not repeat."""
    columns = (
        "model",
        "revision",
        "weights",
        "scheme",
        "backend",
        "dtype",
        "prompt",
        "negative_prompt",
        "seed",
        "steps",
    )
    request = {key: row[key] for key in (*columns, "guidance", "width", "height")}
    encoders = {key: getattr(entry, key) for key in ("use_t5", "max_sequence_length", "call")}
    return request_hash(**request, **encoders, frames=row.get("frames", entry.frames))


def check_samples(
    study: Study, tar: str, samples: list[dict[str, Any]], rows: list[dict[str, Any]], frames: int
) -> None:
    """Members of a shard agree with its manifest: pixels by digest, records by value; latents are finite.

    Several runs may share a picture, whose record names each of them.
    """
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault(row["key"], []).append(row)
    members = ["png", "json", "latent.npy", *(["mp4"] if frames > 1 else [])]
    for sample in samples:
        key = sample["__key__"]
        sharing = by_key.get(key, [])
        if not sharing:
            continue
        if lacking := [name for name in members if name not in sample]:
            study.note("generate", tar, f"image {key} lacks its {lacking[0]}")
            continue
        with study.noting("generate", tar):
            check_png(sample["png"], f"image {key}")
        if any(hashlib.sha256(sample["png"]).hexdigest() != row["png_sha256"] for row in sharing):
            study.note("generate", tar, f"image {key} is not the one of the manifest (sha256)")
        record = {name: value for name, value in sample["json"].items() if name not in ("runs", "frames")}
        told = {(run["prompt_id"], run["seed"]): record | run for run in sample["json"].get("runs") or [record]}
        rows_of = {(row["prompt_id"], row["seed"]): row for row in sharing}
        unlike = told.keys() != rows_of.keys() or any(
            not alike(rows_of[run].get(name, value), value)
            for run, values in told.items()
            for name, value in values.items()
        )
        if unlike or sample["json"].get("frames", 1) != frames:
            study.note("generate", tar, f"the record of image {key} differs from its row of the manifest")
        if lacking := sorted({"prompt_tokens", "prompt_truncated", "request_hash"} - record.keys()):
            study.note("generate", tar, f"the record of image {key} lacks `{lacking[0]}`")
        if not np.isfinite(sample["latent.npy"]).all():
            study.note("generate", tar, f"the latents of image {key} have NaN or infinite values")
        if frames > 1:
            with study.noting("generate", tar):
                if (count := count_frames(sample["mp4"])) != frames:
                    raise InputError(f"video {key} has {count} frames of {frames}")


def count_frames(mp4: bytes) -> int:
    """Frames of an MP4, all of them decoded. Raises InputError where that cannot be done."""
    import imageio_ffmpeg

    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(mp4)
        file.flush()
        try:
            return int(imageio_ffmpeg.count_frames_and_secs(file.name)[0])
        except (RuntimeError, OSError) as error:
            raise InputError(f"a video that cannot be decoded ({error})") from None


def image_rows(study: Study) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows of each model's images by request hash, of models all of whose manifests can be read."""
    quiet = study.quiet()
    manifests: dict[str, list[pl.DataFrame | None]] = {}
    for tar in study.targets("generate"):
        manifests.setdefault(tar.split("/")[1], []).append(quiet.table("generate", beside(tar)[0], "images"))
    return {
        model: {row["request_hash"]: row for table in tables if table is not None for row in table.to_dicts()}
        for model, tables in manifests.items()
        if all(table is not None for table in tables)
    }
