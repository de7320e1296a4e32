"""Images and videos: sample one for each run of a prompt shard, in slices that an interrupted job resumes at."""

import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
from tqdm import tqdm

from ditscope.core.counts import check_complete, grouped
from ditscope.core.identity import BASE, request_hash, weights_id
from ditscope.core.paths import InputFile, OutputFile, OutputFolder
from ditscope.core.scratch import publish, unfinished
from ditscope.core.shards import mp4_bytes, png_bytes, read_tar, write_tar
from ditscope.core.tables import write_table
from ditscope.generate.settings import Generate
from ditscope.models.registry import Generator, load_generator, reads_negative, settled, text_length
from ditscope.models.sampling import decode, sample, still
from ditscope.models.settings import Model
from ditscope.prompts.stage import read_runs

log = logging.getLogger(__name__)

COLUMNS = (
    "request_hash", "model", "revision", "weights", "scheme", "backend", "dtype", "prompt_id", "prompt",
    "negative_prompt", "seed", "derived_seed", "steps", "guidance", "width", "height", "prompt_tokens",
    "prompt_truncated", "key", "png_sha256",
)  # fmt: skip
RUN = ("prompt_id", "seed", "derived_seed")  # what runs that share a picture may differ in


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

    Runs that ask for the same picture share it: the shard has it once, with its `runs` in the json.
    Leaves `images` (tar of png, json, latent), `manifest` (table `images`, one row per run) and `timing` (table
    `images.timing`: seconds of each slice), the last two beside the first where no path is given. Finished slices
    in `partial` are reused.
    """
    runs = read_runs(prompts)
    groups = runs_by_picture(name, model, runs)
    slices = [groups[i : i + settings.slice_size] for i in range(0, len(groups), settings.slice_size)]
    parts = unfinished(partial, images, {"model": model, "runs": runs, "settings": settings})
    loaded: Generator | None = None
    seconds = []
    for number, part_groups in enumerate(tqdm(slices, desc=name, unit="slice", disable=None)):
        part = parts / f"{number:05d}.tar"
        began = time.perf_counter()
        if not part.exists():
            loaded = loaded or load_generator(name, model)
            write_tar(with_runs(generate_slice(loaded, [group[0] for group in part_groups]), part_groups), part)
        cost = {"images": len(part_groups), "seconds": time.perf_counter() - began}
        seconds.append({"model": name, "slice": number} | cost)
        log.info("%s: slice %d of %d done", name, number + 1, len(slices))
    samples = [made for number in range(len(slices)) for made in read_tar(parts / f"{number:05d}.tar")]
    records = {}
    for made in samples:
        about = {"key": made["__key__"], "png_sha256": hashlib.sha256(made["png"]).hexdigest()}
        for run in made["json"]["runs"]:
            records[run["prompt_id"], run["seed"]] = made["json"] | run | about
    asked = [(run["prompt_id"], run["seed"]) for run in runs]
    check_complete(images, "runs (prompt_id, seed)", asked, records)
    write_tar(samples, images)
    table = pl.DataFrame([records[run] for run in asked]).select(COLUMNS)
    write_table(table, manifest or beside(images, ".parquet"), "images")
    write_table(pl.DataFrame(seconds), timing or beside(images, ".timing.parquet"), "images.timing")
    publish(parts)


def runs_by_picture(name: str, model: Model, runs: list[dict]) -> list[list[dict]]:
    """Runs in groups that ask a model for the same picture, in order of their first ones."""
    return grouped(runs, lambda run: request_key(request_of(name, model, run)))


def with_runs(samples: list[dict], groups: list[list[dict]]) -> list[dict]:
    """Samples whose json lists, as `runs`, every run of the group that each was made for; a picture comes once."""
    found: dict[str, dict] = {}
    for made, group in zip(samples, groups, strict=True):
        runs = [{key: run[key] for key in RUN} for run in group]
        first = found.setdefault(made["__key__"], made | {"json": made["json"] | {"runs": []}})
        first["json"]["runs"] += runs
    return list(found.values())


def beside(tar: Path, suffix: str) -> Path:
    """A file beside a tar, of its whole name: `run.1` and `run.2` are two stems, `shard.tar` is the stem `shard`."""
    return tar.with_name(tar.name.removesuffix(".tar") + suffix)


def generate_slice(model: Generator, rows: list[dict], scheme: str = BASE, scheme_key: str = BASE) -> list[dict]:
    """Sample a batch of runs; WebDataset samples with png, json (the image's own record) and latent.

    A video is an mp4 beside the png of its middle frame. `scheme` is the name that is recorded, `scheme_key` what
    identifies it (see `identity.scheme_id`).
    """
    latents = sample(model, *requests(rows))
    images = decode(model, latents).numpy()
    with ThreadPoolExecutor() as pool:  # a megapixel takes as long to compress as a GPU to sample in four steps
        encoded = list(pool.map(png_bytes, map(still, images)))
    samples = []
    for row, latent, image, png in zip(rows, latents.float().cpu().numpy(), images, encoded, strict=True):
        record = describe(model, row, scheme, scheme_key)
        made = {"__key__": record["request_hash"], "png": png, "json": record, "latent.npy": latent}
        samples.append(made | ({"mp4": mp4_bytes(image, model.family.FPS)} if image.ndim == 4 else {}))
    return samples


def requests(rows: list[dict]) -> tuple[list[str], list[str], list[int]]:
    """Prompts, negative prompts and seeds of runs, as `sample` takes them."""
    return [r["prompt"] for r in rows], [r["negative_prompt"] for r in rows], [r["seed"] for r in rows]


def request_of(name: str, entry: Model, row: dict) -> dict:
    """What determines an image of a model, less its quantization: the arguments of `request_hash`.

    A setting that the model does not read is empty or 0 in it, whatever is given.
    """
    entry = settled(entry)
    return (
        {
            "model": name,
            "revision": entry.revision,
            "weights": weights_id(entry.source, entry.revision),
            "scheme": BASE,
            "backend": entry.backend,
            "dtype": entry.dtype,
            "use_t5": entry.use_t5,
            "max_sequence_length": entry.max_sequence_length,
            "prompt": row["prompt"],
            "negative_prompt": row["negative_prompt"] if reads_negative(entry) else "",
            "seed": row["seed"],
            "steps": entry.steps,
            "guidance": entry.guidance,
            "width": entry.width,
            "height": entry.height,
        }
        | ({"frames": entry.frames} if entry.frames > 1 else {})
        | ({"call": entry.call} if entry.call else {})
    )


def request_key(request: dict, scheme_key: str = BASE) -> str:
    """The request hash of what `request_of` gives, under a quantization scheme."""
    return request_hash(**request | {"scheme": scheme_key})


def describe(model: Generator, row: dict, scheme: str = BASE, scheme_key: str = BASE) -> dict:
    """The record of one image: everything that determines it, its request hash, and whether its prompt was cut."""
    request = request_of(model.name, model.entry, row)
    if row["negative_prompt"] != request["negative_prompt"]:
        log.warning("%s: reads no negative prompt; that of prompt %s is left out", model.name, row["prompt_id"])
    tokens, truncated = prompt_tokens(model, row["prompt"])
    if truncated:
        log.warning(
            "%s: prompt %s has %d tokens, more than the text encoder reads; cut", model.name, row["prompt_id"], tokens
        )
    return (
        {"request_hash": request_key(request, scheme_key), "prompt_id": row["prompt_id"]}
        | request
        | {"scheme": scheme}
        | {"derived_seed": row["derived_seed"], "prompt_tokens": tokens, "prompt_truncated": truncated}
    )


def prompt_tokens(model: Generator, prompt: str) -> tuple[int, bool]:
    """Tokens of a prompt under the tokenizer that reads most of it, and whether its text encoder still cuts it."""
    pipe = model.pipe
    t5 = getattr(pipe, model.family.T5, None)
    tokenizer, length = (t5, text_length(model)) if t5 else (pipe.tokenizer, pipe.tokenizer.model_max_length)
    count = len(tokenizer(prompt, verbose=False).input_ids)
    return count, count > length
