"""Captures: the output of every block at every denoising step, its statistics, and what it would draw."""

import errno
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin
from torch import Tensor
from tqdm import tqdm

from ditscope.capture.any_recorder import AnyRecorder
from ditscope.capture.files import (
    DECODED,
    METADATA,
    decoded_file,
    film_file,
    generation_name,
    is_video,
    metadata_file,
    read_metadata,
    rows_of_runs,
    write_metadata,
)
from ditscope.capture.load import in_memory, load_capture
from ditscope.capture.recorder import Recorder
from ditscope.capture.settings import CaptureSet
from ditscope.capture.tables import FRAMES, STATISTICS
from ditscope.core.atomic import replacing
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.identity import derived_seed, file_digest
from ditscope.core.paths import InputFile, OutputFolder
from ditscope.core.patterns import select_blocks, select_indices
from ditscope.core.picture_file import JPEG
from ditscope.core.scratch import discard, unfinished
from ditscope.core.tables import read_table, write_table
from ditscope.models.block_names import block_names
from ditscope.models.loading import Generator
from ditscope.models.placement import load_placed
from ditscope.models.requests import RUN, describe, requests
from ditscope.models.sampling import decode, sample, still
from ditscope.models.settings import Model
from ditscope.prompts.files import check_seed, read_runs

log = logging.getLogger(__name__)

DECODE_BATCH = 16
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota reached, file too large
PNG_KEYWORDS = {"ImageDescription": "Description"}  # the PNG specification's own word


def capture(
    name: str,
    model: Model,
    output_dir: OutputFolder = Path("output"),
    prompt: str = "",
    prompts: list[InputFile] | None = None,
    negative_prompt: str = "",
    seed: int = -1,
    num_steps: int = 0,
    guidance: float = -1.0,
    width: int = 0,
    height: int = 0,
    settings: CaptureSet = CaptureSet(),
    partial: OutputFolder | None = None,
) -> None:
    """Sample with a model while recording what its blocks put out; one folder `output_dir`/<generation id> per picture.

    Runs are `prompt` with `seed` (-1: one derived from the prompt, and recorded) or the first `settings.generations`
    of the tables (or prompt CSVs) `prompts`. num_steps, guidance, width and height replace the model entry's where
    they are given. Runs that ask for the same picture share its folder, whose metadata and tables name each. A run that
    is complete in `partial` is not sampled again; no unfinished one reaches `output_dir`. What is in `output_dir`
    stays: a finished capture of the same request and settings is not made again, and a folder of that name that holds
    anything else is refused.
    """
    runs = read_captured_runs(prompt, prompts, negative_prompt, seed, settings.generations)
    entry = override(name, model, num_steps, guidance, width, height)
    blocks, steps = selection(name, entry, settings)
    root = partial or writable(output_dir) / ".partial"
    parts = unfinished(root, output_dir, {"model": entry, "runs": runs, "settings": settings})
    try:
        loaded = load_placed(name, entry, offload=settings.offload, multi_gpu=settings.multi_gpu)
        records = generations_of(loaded, runs, settings)
        kept = [gid for gid, record in records.items() if is_captured(output_dir / gid, record["request_hash"])]
        for position, (gid, record) in enumerate(records.items()):
            if gid in kept:
                log.info("%s: generation %s is already captured; %s is kept as it is", name, gid, output_dir / gid)
            elif (parts / gid).exists():
                log.info("%s: generation %s is already captured", name, gid)
            else:
                log.info("%s: generation %s: %s (seed %d)", name, gid, record["prompt"], record["seed"])
                folder = parts / f"{gid}.unfinished"
                shutil.rmtree(folder, ignore_errors=True)
                numbered = record | {"generation_id": gid, "position": position}
                capture_run(loaded, numbered, folder, blocks, steps, settings, len(records))
                os.replace(folder, parts / gid)
        writable(output_dir)
        for gid, record in records.items():
            if gid in kept:
                add_runs(output_dir / gid, record["runs"])
            else:
                shutil.move(parts / gid, output_dir / gid)
        check_captured(output_dir, runs, list(records))
    finally:
        if not any(part.is_dir() and part.suffix != ".unfinished" for part in parts.iterdir()):  # nothing to resume at
            discard(parts)
            if partial is None:
                with suppress(OSError):  # unfinished runs of another call may be in it
                    root.rmdir()


def generations_of(model: Generator, runs: list[dict], settings: CaptureSet) -> dict[str, dict]:
    """The record of each generation by its id, with the runs that ask for it. Raises InputError where ids collide."""
    records: dict[str, dict] = {}
    for run in runs:
        record = describe(model, run)
        gid = generation_name(record["request_hash"], settings)
        first = records.setdefault(gid, record | {"runs": []})
        first["runs"].append({key: run[key] for key in RUN})
        if first["request_hash"] != record["request_hash"]:
            both = f"{first['prompt_id']} and {record['prompt_id']}"
            raise InputError(f"prompts {both} share the generation id {gid}; capture them apart")
    return records


def check_captured(output_dir: Path, runs: list[dict], gids: list[str]) -> None:
    """Every run that was asked for is named once in the metadata of the generations `gids`."""
    asked = [(run["prompt_id"], run["seed"]) for run in runs]
    named = [run for gid in gids for run in read_metadata(output_dir / gid)["runs"]]
    wanted = set(asked)  # an earlier call may have captured a generation for other runs
    left = [key for run in named if (key := (run["prompt_id"], run["seed"])) in wanted]
    check_complete(output_dir, "runs (prompt_id, seed)", asked, left)


def add_runs(folder: Path, runs: list[dict[str, Any]]) -> None:
    """Name further runs of its picture in a finished capture: in its metadata, and by rows in its statistics."""
    metadata = read_metadata(folder)
    known = {(run["prompt_id"], run["seed"]) for run in metadata["runs"]}
    new = [run for run in runs if (run["prompt_id"], run["seed"]) not in known]
    if not new:
        return
    first, metadata["runs"] = metadata["runs"][0], [*metadata["runs"], *new]
    for table in (STATISTICS, FRAMES):
        path = folder / f"{table.stem}.parquet"
        if path.exists():
            rows = read_table(path, table.name).filter(prompt_id=first["prompt_id"])
            write_table(rows_of_runs(rows, metadata), path, table)
    file = metadata_file(folder)
    write_metadata(metadata, file.parent, file.name)
    log.info("%s: names %s as well", folder, ", ".join(f"prompt_id {run['prompt_id']}" for run in new))


def is_captured(folder: Path, request: str) -> bool:
    """Whether a folder holds the finished capture of a request. Raises InputError where it is there for another end."""
    if not os.path.lexists(folder):
        return False
    with suppress(InputError):
        if read_metadata(folder)["request_hash"] == request:
            return True
    raise InputError(
        f"{folder}: is there and holds no finished capture of this request; move it away, or choose another output_dir"
    )


def read_captured_runs(prompt: str, prompts: list[Path] | None, negative: str, seed: int, limit: int) -> list[dict]:
    """The runs to capture: one prompt, or the first `limit` (0: all) rows of the tables or CSVs `prompts`."""
    if bool(prompt) == bool(prompts):
        raise InputError("give either `prompt` or `prompts` (tables or CSVs of prompts)")
    if prompts:
        runs = read_runs(*prompts)
        return runs[:limit] if limit else runs
    derived = check_seed("--seed", seed) == -1
    return [
        {
            "prompt_id": "prompt",
            "prompt": prompt,
            "negative_prompt": negative,
            "seed": derived_seed("capture", prompt) if derived else seed,
            "derived_seed": derived,
        }
    ]


def override(name: str, model: Model, num_steps: int, guidance: float, width: int, height: int) -> Model:
    """The model entry with those settings replaced that are given (not 0; guidance: not negative)."""
    if num_steps < 0:
        raise InputError(f"num_steps: {num_steps} is below 0")
    for side, pixels in (("width", width), ("height", height)):
        if pixels % 16 or pixels < 0:
            raise InputError(f"{side}: {pixels} is not a multiple of 16")
    return replace(
        model,
        steps=num_steps or model.steps,
        guidance=model.guidance if guidance < 0 else guidance,
        width=width or model.width,
        height=height or model.height,
    )


def selection(name: str, entry: Model, settings: CaptureSet) -> tuple[list[str], list[int]]:
    """Names of the blocks and numbers of the steps that the patterns choose, before any weight is read."""
    if settings.offload and settings.multi_gpu:
        raise InputError("`offload` and `multi_gpu` exclude each other; choose one")
    if unknown := set(settings.decode) - set(DECODED):
        raise InputError(f"decode: `{unknown.pop()}` is not a decode; valid: {', '.join(DECODED)}")
    blocks = select_blocks(settings.blocks, block_names(name, entry), "blocks")
    return blocks, select_indices(settings.steps, entry.steps, "steps")


def writable(folder: Path) -> Path:
    """`folder`, made if need be; refused if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another output_dir") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written; choose another output_dir")
    return folder


def capture_run(
    model: Generator,
    record: dict,
    folder: Path,
    blocks: Sequence[str],
    steps: Sequence[int],
    settings: CaptureSet,
    runs: int = 1,
) -> Tensor:
    """Capture one run into `folder`; returns the final latents. A failure leaves nothing behind.

    Raises InputError, before the first byte, where `runs` such captures would take more than `settings.max_bytes`.
    """

    def admit(step_bytes: int) -> None:
        check_room(folder, runs * len(steps) * step_bytes, settings.max_bytes)

    recording = AnyRecorder if getattr(model.family, "AS_HELD", False) else Recorder
    recorder = recording(folder / "intermediates", blocks, steps, settings, record, admit)
    kinds = settings.decode if settings.should_decode_intermediates else []
    try:
        recorder.intermediates.mkdir(parents=True)
        latents = sample(model, *requests([record]), [recorder])
        image, file = decode(model, latents)[0].numpy(), folder / f"img_0.{settings.image_format}"
        save_image(Image.fromarray(still(image)), file, record, settings.add_sampling_metadata)
        save_film(model, image, file)
        write_table(rows_of_runs(recorder.table(), record), folder / "statistics.parquet", STATISTICS)
        if (frames := recorder.frame_table()) is not None:
            write_table(rows_of_runs(frames, record), folder / "frames.parquet", FRAMES)
        write_metadata(recorder.metadata() | {"decoded": list(kinds)}, recorder.intermediates)
        if kinds:
            decode_blocks(model, recorder.intermediates, kinds)
        if settings.format == "pt":
            pack_single_file(recorder.intermediates, record["model"])
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise InputError(
                f"{folder}: cannot be written ({error.strerror}), the unfinished capture is removed; free space, or "
                "choose fewer blocks, steps or generations"
            ) from error
        raise
    return latents


def check_room(folder: Path, expected: int, max_bytes: int) -> None:
    """Refuse a capture of `expected` bytes that the budget or the free disk space does not allow."""
    fix = "choose fewer blocks, steps or generations, or set store to statistics"
    if expected > max_bytes:
        raise InputError(
            f"capture would take {expected:,} bytes, more than max_bytes {max_bytes:,}; {fix}, or raise max_bytes"
        )
    disk = next(parent for parent in folder.absolute().parents if parent.exists())
    if expected > (free := shutil.disk_usage(disk).free):
        raise InputError(f"capture would take {expected:,} bytes, and {disk} has {free:,} free; {fix}")


def read_out(
    kind: str, latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float, parameterization: str = "flow"
) -> Tensor:
    """Latents that a velocity at noise level `sigma` leads to: the clean estimate x0, or the next noisy state x_prev.

    On the straight path x = (1 - sigma) x0 + sigma noise the velocity is noise - x0 (Liu et al. 2023), so that
    x0 = x - sigma v; one Euler step gives x_prev = x + (sigma_next - sigma) v. Of a scheduler that keeps the variance,
    x = sqrt(1 - sigma^2) x0 + sigma noise, and x_prev is a step of DDIM (Song et al. 2021, equation 12, eta = 0).
    """
    if parameterization != "flow":
        return kept_variance(kind, latents.float(), velocity.float(), sigma, sigma_next, parameterization)
    change = {"x0": -sigma, "x_prev": sigma_next - sigma}[kind]
    return latents.float() + change * velocity.float()


def kept_variance(
    kind: str, x: Tensor, prediction: Tensor, sigma: float, sigma_next: float, parameterization: str
) -> Tensor:
    """`read_out` where the prediction is the noise (`epsilon`), `v_prediction` (sqrt(1 - s^2) noise - s x0) or x0."""
    signal = max(1 - sigma**2, 1e-12) ** 0.5
    if parameterization == "epsilon":
        x0, noise = (x - sigma * prediction) / signal, prediction
    elif parameterization == "v_prediction":
        x0, noise = signal * x - sigma * prediction, sigma * x + signal * prediction
    else:
        x0, noise = prediction, (x - signal * prediction) / max(sigma, 1e-6)
    return x0 if kind == "x0" else (1 - sigma_next**2) ** 0.5 * x0 + sigma_next * noise


def decode_blocks(model: Generator, intermediates: Path, kinds: Sequence[str]) -> None:
    """Draw every block's stored prediction as `<decoded>/step_<i>/<block>.jpg`, for each of `kinds` (x0, x_prev).

    Of a video that is the middle frame, beside the film.
    """
    data = load_capture(intermediates)
    pairs, latents = data["denoising_context"]["timestep_pairs"], data["denoising_context"]["img_state"]
    of = data["metadata"].get("parameterization", "flow")
    at_once = 1 if is_video(data["metadata"]) else DECODE_BATCH
    for i, index in enumerate(tqdm(data["metadata"]["captured_steps"], desc="decoding", unit="step", disable=None)):
        for kind in kinds:
            decoded_file(intermediates, kind, index, "").parent.mkdir(parents=True)
            states = {
                b: read_out(kind, latents[i], v[i], pairs[i][0], pairs[i][1], of)
                for b, v in data["predictions"].items()
            }
            names = list(states)
            for begin in range(0, len(names), at_once):
                batch = names[begin : begin + at_once]
                images = decode(model, torch.cat([states[name] for name in batch]).to(latents[i].dtype))
                for name, image in zip(batch, images.numpy(), strict=True):
                    file = decoded_file(intermediates, kind, index, name)
                    with replacing(file) as partial:
                        Image.fromarray(still(image)).save(partial, "JPEG", **JPEG)
                    save_film(model, image, file)


def save_film(model: Generator, frames: np.ndarray, picture: Path) -> None:
    """Save the frames (frames, height, width, 3) of a video beside the picture of its middle one; none of an image."""
    if frames.ndim == 4:
        with replacing(film_file(picture)) as partial:
            partial.write_bytes(model.family.film(frames))


def save_image(image: Image.Image, path: Path, record: dict, add_prompt: bool) -> None:
    """Save a generated image as JPEG or PNG, marked as synthetic, with its model and, if wished, its prompt."""
    about = {"Software": "ditscope;AI generated;txt2img", "Model": record["model"]}
    if add_prompt:
        about["ImageDescription"] = record["prompt"]
    data = Image.Exif()
    for name, text in about.items():
        data[ExifTags.Base[name]] = text.encode()
    chunks = PngImagePlugin.PngInfo()
    for name, text in about.items():
        chunks.add_itxt(PNG_KEYWORDS.get(name, name), text)
    with replacing(path) as partial:
        if path.suffix == ".jpg":
            image.save(partial, "JPEG", **JPEG, exif=data)
        else:
            image.save(partial, "PNG", pnginfo=chunks, exif=data)


def pack_single_file(intermediates: Path, model: str) -> None:
    """Replace the step files by one `capture_<time>_<model>.pt`, readable with `weights_only=True`.

    The whole capture passes through memory: `torch.save` wants its object complete.
    """
    stamp = f"{datetime.now(UTC):%Y%m%d_%H%M%S}_{model}"
    data = in_memory(load_capture(intermediates))
    metadata = data["metadata"]
    steps, metadata["files"] = metadata["files"], {}
    single = intermediates / f"capture_{stamp}.pt"
    with replacing(single) as partial:
        torch.save(data, partial)
    metadata["files"] = {single.name: {"sha256": file_digest(single, 256), "bytes": single.stat().st_size}}
    for name in [*steps, METADATA]:
        (intermediates / name).unlink()
    write_metadata(metadata, intermediates, f"metadata_{stamp}.json")
