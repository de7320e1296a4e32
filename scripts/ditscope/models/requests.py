"""Requests: what determines a picture, the runs that ask for it, and its record."""

import logging
from concurrent.futures import ThreadPoolExecutor

from ditscope.core.counts import grouped
from ditscope.core.identity import BASE, request_hash
from ditscope.core.shards import png_bytes
from ditscope.models.folders import weights_of
from ditscope.models.loading import Generator, reads_negative, settled, text_length
from ditscope.models.sampling import decode, sample, still
from ditscope.models.settings import Model

log = logging.getLogger(__name__)

RUN = ("prompt_id", "seed", "derived_seed")  # what runs that share a picture may differ in


def runs_by_picture(name: str, model: Model, runs: list[dict]) -> list[list[dict]]:
    """Runs in groups that ask a model for the same picture, in order of their first ones."""
    return grouped(runs, lambda run: request_key(request_of(name, model, run)))


def with_runs(samples: list[dict], groups: list[list[dict]]) -> list[dict]:
    """Samples whose json lists, as `runs`, every run of the group that each was made for; a picture comes once."""
    pictures: dict[str, dict] = {}
    for made, group in zip(samples, groups, strict=True):
        runs = [{key: run[key] for key in RUN} for run in group]
        first = pictures.setdefault(made["__key__"], made | {"json": made["json"] | {"runs": []}})
        first["json"]["runs"] += runs
    return list(pictures.values())


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
        samples.append(made | ({"mp4": model.family.film(image)} if image.ndim == 4 else {}))
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
            "weights": weights_of(entry),
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
    tokenizer = t5 or getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return 0, False
    of_call = t5 or getattr(model.family, "AS_HELD", False)
    length = (text_length(model) if of_call else 0) or tokenizer.model_max_length
    count = len(tokenizer(prompt, verbose=False).input_ids)
    return count, count > length
