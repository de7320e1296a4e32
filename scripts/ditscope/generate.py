"""Images and videos: sample one for each run of a prompt shard, in slices that an interrupted job resumes at."""

import hashlib
import logging
import time
from pathlib import Path

import polars as pl
from tqdm import tqdm

from ditscope.identity import request_hash
from ditscope.models import Generator, load_generator, reads_negative, text_length
from ditscope.partial import publish, unfinished
from ditscope.prompts import read_runs
from ditscope.sampling import decode, sample, still
from ditscope.settings import Generate, Model
from ditscope.shards import mp4_bytes, png_bytes, read_tar, write_tar
from ditscope.tables import write_table

log = logging.getLogger(__name__)

COLUMNS = (
    "request_hash", "model", "revision", "scheme", "backend", "dtype", "prompt_id", "prompt", "negative_prompt", "seed",
    "derived_seed", "steps", "guidance", "width", "height", "prompt_tokens", "prompt_truncated", "key", "png_sha256",
)  # fmt: skip


def generate(
    name: str,
    model: Model,
    prompts: Path,
    images: Path,
    manifest: Path | None = None,
    timing: Path | None = None,
    settings: Generate = Generate(),
    partial: Path | None = None,
) -> None:
    """Sample every run of `prompts` (a table or a CSV) with one model into a WebDataset shard and its manifest.

    Leaves `images` (tar of png, json, latent), `manifest` (table `images`, one row a run) and `timing` (table
    `images.timing`: seconds of each slice), the last two beside the first where no path is given. Finished slices
    in `partial` are reused.
    """
    runs = read_runs(prompts)
    slices = [runs[i : i + settings.slice_size] for i in range(0, len(runs), settings.slice_size)]
    parts = unfinished(partial, images, {"model": model, "runs": runs, "settings": settings})
    loaded: Generator | None = None
    seconds = []
    for number, rows in enumerate(tqdm(slices, desc=name, unit="slice", disable=None)):
        part = parts / f"{number:05d}.tar"
        began = time.perf_counter()
        if not part.exists():
            loaded = loaded or load_generator(name, model)
            write_tar(generate_slice(loaded, rows), part)
        seconds.append({"model": name, "slice": number, "images": len(rows), "seconds": time.perf_counter() - began})
        log.info("%s: slice %d of %d done", name, number + 1, len(slices))
    samples = [sample for number in range(len(slices)) for sample in read_tar(parts / f"{number:05d}.tar")]
    write_tar(samples, images)
    records = [s["json"] | {"key": s["__key__"], "png_sha256": hashlib.sha256(s["png"]).hexdigest()} for s in samples]
    write_table(pl.DataFrame(records).select(COLUMNS), manifest or images.with_suffix(".parquet"), "images")
    write_table(pl.DataFrame(seconds), timing or images.with_suffix(".timing.parquet"), "images.timing")
    publish(parts)


def generate_slice(model: Generator, rows: list[dict], scheme: str = "base") -> list[dict]:
    """Sample a batch of runs; WebDataset samples with png, json (the image's own record) and latent.

    A video is an mp4 beside the png of its middle frame.
    """
    latents = sample(model, *requests(rows))
    images = decode(model, latents).numpy()
    samples = []
    for row, latent, image in zip(rows, latents.float().cpu().numpy(), images, strict=True):
        record = describe(model, row, scheme)
        made = {"__key__": record["request_hash"], "png": png_bytes(still(image)), "json": record, "latent.npy": latent}
        samples.append(made | ({"mp4": mp4_bytes(image, model.family.FPS)} if image.ndim == 4 else {}))
    return samples


def requests(rows: list[dict]) -> tuple[list[str], list[str], list[int]]:
    """Prompts, negative prompts and seeds of runs, as `sample` takes them."""
    return [r["prompt"] for r in rows], [r["negative_prompt"] for r in rows], [r["seed"] for r in rows]


def describe(model: Generator, row: dict, scheme: str = "base") -> dict:
    """The record of one image: everything that determines it, its request hash, and whether its prompt was cut."""
    entry = model.entry
    request = {
        "model": model.name,
        "revision": entry.revision,
        "scheme": scheme,
        "backend": entry.backend,
        "dtype": entry.dtype,
        "prompt": row["prompt"],
        "negative_prompt": negative_read(entry, row["negative_prompt"]),
        "seed": row["seed"],
        "steps": entry.steps,
        "guidance": entry.guidance,
        "width": entry.width,
        "height": entry.height,
    }
    request |= ({"frames": entry.frames} if entry.frames > 1 else {}) | ({"call": entry.call} if entry.call else {})
    if row["negative_prompt"] != request["negative_prompt"]:
        log.warning("%s: reads no negative prompt; that of prompt %s is left out", model.name, row["prompt_id"])
    tokens, truncated = prompt_tokens(model, row["prompt"])
    if truncated:
        log.warning(
            "%s: prompt %s has %d tokens, more than the text encoder reads; cut", model.name, row["prompt_id"], tokens
        )
    return (
        {"request_hash": request_hash(**request), "prompt_id": row["prompt_id"]}
        | request
        | {"derived_seed": row["derived_seed"], "prompt_tokens": tokens, "prompt_truncated": truncated}
    )


def negative_read(entry: Model, negative_prompt: str) -> str:
    """The negative prompt as far as the model reads it: empty where it reads none, whatever is given."""
    return negative_prompt if reads_negative(entry, entry.guidance) else ""


def prompt_tokens(model: Generator, prompt: str) -> tuple[int, bool]:
    """Tokens of a prompt under the tokenizer that reads most of it, and whether its text encoder still cuts it."""
    pipe = model.pipe
    t5 = getattr(pipe, model.family.T5, None)
    tokenizer, length = (t5, text_length(model)) if t5 else (pipe.tokenizer, pipe.tokenizer.model_max_length)
    count = len(tokenizer(prompt, verbose=False).input_ids)
    return count, count > length
