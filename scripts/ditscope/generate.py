"""Images and videos: sample one for each run of a prompt shard, in slices that an interrupted job resumes at."""

import hashlib
import logging
import time

import polars as pl
from tqdm import tqdm

from ditscope.identity import request_hash
from ditscope.models import Generator, load_generator
from ditscope.partial import publish, unfinished
from ditscope.paths import InputFile, OutputFile, OutputFolder
from ditscope.prompts import read_runs
from ditscope.sampling import decode, encode_prompts, noise_of, sample, still
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
    prompts: InputFile,
    images: OutputFile,
    manifest: OutputFile | None = None,
    timing: OutputFile | None = None,
    settings: Generate = Generate(),
    partial: OutputFolder | None = None,
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
    noise = noise_of(model, [row["seed"] for row in rows])
    cond = encode_prompts(model, [r["prompt"] for r in rows], [r["negative_prompt"] for r in rows])
    latents = sample(model, noise, cond)
    images = decode(model, latents).numpy()
    samples = []
    for row, latent, image in zip(rows, latents.float().cpu().numpy(), images, strict=True):
        record = describe(model, row, scheme)
        made = {"__key__": record["request_hash"], "png": png_bytes(still(image)), "json": record, "latent.npy": latent}
        samples.append(made | ({"mp4": mp4_bytes(image, model.family.FPS)} if image.ndim == 4 else {}))
    return samples


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
        "negative_prompt": row["negative_prompt"],
        "seed": row["seed"],
        "steps": entry.steps,
        "guidance": entry.guidance,
        "width": entry.width,
        "height": entry.height,
    } | ({"frames": entry.frames} if entry.frames > 1 else {})
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


def prompt_tokens(model: Generator, prompt: str) -> tuple[int, bool]:
    """Tokens of a prompt under the longest-reading tokenizer, and whether that still cuts it."""
    names = [n for n in ("tokenizer", "tokenizer_2", "tokenizer_3") if getattr(model.pipe, n, None) is not None]
    tokenizer = max((getattr(model.pipe, n) for n in names), key=lambda t: t.model_max_length)
    count = len(tokenizer(prompt, verbose=False).input_ids)
    return count, count > (model.entry.max_sequence_length or tokenizer.model_max_length)
