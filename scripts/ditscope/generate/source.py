"""Pictures of the user's own in place of sampled ones: a folder of them, or shards that `generate` left elsewhere."""

import hashlib
import logging
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image, ImageOps

from ditscope.core.errors import InputError, parsing
from ditscope.core.paths import OutputFile
from ditscope.core.picture_file import pixels
from ditscope.core.shards import Sample, png_bytes, read_tar, write_tar
from ditscope.core.tables import read_table, write_table
from ditscope.generate.stage import beside
from ditscope.generate.tables import IMAGES, TIMING
from ditscope.models.folders import resolve_source
from ditscope.models.loading import default_device
from ditscope.models.registry import family_of
from ditscope.models.requests import RUN, with_runs
from ditscope.models.settings import Model

log = logging.getLogger(__name__)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def import_images(
    name: str, model: Model, source: Path, images: OutputFile, manifest: OutputFile, timing: OutputFile
) -> None:
    """Bring pictures of the user's own into the study as one shard of images of the model `name`.

    `source` is a shard of `generate` (with its manifest beside it, if there is one), a folder of such shards, or a
    folder of pictures, each with its caption in a .txt of the same name. Pictures are cropped to the entry's sides and
    encoded by the model's VAE. Leaves what `generate` leaves. Raises InputError for what cannot be read, was made by
    another model, or is not what its manifest says.
    """
    began = time.perf_counter()
    shards = [source] if source.is_file() else sorted(source.rglob("*.tar"))
    samples = [made for shard in shards for made in shard_samples(name, shard)]
    samples = samples or picture_samples(name, model, source)
    bare = [made for made in samples if "latent.npy" not in made]
    for made, latent in zip(bare, encoded(name, model, [made["png"] for made in bare]), strict=True):
        made["latent.npy"] = latent
    rows = [
        made["json"] | run | {"key": made["__key__"], "png_sha256": hashlib.sha256(made["png"]).hexdigest()}
        for made in samples
        for run in made["json"]["runs"]
    ]
    runs = Counter((row["prompt_id"], row["seed"]) for row in rows)
    if twice := next((run for run, count in runs.items() if count > 1), None):
        raise InputError(f"{source}: holds the picture of prompt_id `{twice[0]}`, seed {twice[1]}, twice; give it once")
    write_tar(samples, images)
    write_table(pl.DataFrame(rows, schema=IMAGES.schema()), manifest, IMAGES)
    cost = {"model": name, "slice": 0, "images": len(samples), "seconds": time.perf_counter() - began}
    write_table(pl.DataFrame([cost], schema=TIMING.schema()), timing, TIMING)
    log.info("%s: %d pictures of %s", name, len(samples), source)


def shard_samples(name: str, shard: Path) -> list[Sample]:
    """The samples of a shard of `generate`, checked against the manifest beside it."""
    samples = list(read_tar(shard))
    for made in samples:
        if lacking := [member for member in ("png", "json") if member not in made]:
            raise InputError(f"{shard}: sample {made['__key__']} has no {lacking[0]}; give shards that `generate` left")
        if lacking := [key for key in (*list(IMAGES.columns)[:-2], "runs") if key not in made["json"]]:
            raise InputError(f"{shard}: the record of sample {made['__key__']} lacks `{lacking[0]}`; give whole shards")
        if made["json"]["model"] != name:
            raise InputError(f"{shard}: made by `{made['json']['model']}`, not `{name}`; give it under its own name")
    if (table := beside(shard, ".parquet")).exists():
        told = dict(read_table(table, "images").select("key", "png_sha256").rows())
        digests = {made["__key__"]: hashlib.sha256(made["png"]).hexdigest() for made in samples}
        if wrong := sorted({key for key in told.keys() | digests.keys() if told.get(key) != digests.get(key)}):
            raise InputError(f"{shard}: picture {wrong[0]} is not the one that {table.name} lists; copy both again")
    return samples


def picture_samples(name: str, model: Model, source: Path) -> list[Sample]:
    """A sample for each picture below a folder: cropped to the model's sides, with its caption as its prompt."""
    samples, groups = [], []
    for path in sorted(path for path in source.rglob("*") if path.suffix.lower() in PICTURES):
        with parsing(path, "not a readable picture ({}); leave it out"), Image.open(path) as opened:
            picture = ImageOps.fit(ImageOps.exif_transpose(opened).convert("RGB"), (model.width, model.height))
        png, caption = png_bytes(np.asarray(picture)), path.with_suffix(".txt")
        prompt = caption.read_text(encoding="utf-8").strip() if caption.exists() else ""
        key = hashlib.sha256(png + prompt.encode()).hexdigest()[:32]
        run = {"prompt_id": path.relative_to(source).with_suffix("").as_posix(), "seed": 0, "derived_seed": False}
        record: dict[str, Any] = run | {
            "request_hash": key, "model": name, "revision": "", "weights": "", "scheme": "", "backend": "", "dtype": "",
            "prompt": prompt, "negative_prompt": "", "steps": 0, "guidance": 0.0, "width": model.width,
            "height": model.height, "prompt_tokens": 0, "prompt_truncated": False,
        }  # fmt: skip
        samples.append({"__key__": key, "png": png, "json": record})
        groups.append([{column: run[column] for column in RUN}])
    if not samples:
        raise InputError(f"{source}: holds no pictures; give .png, .jpg or .webp files, or shards")
    return with_runs(samples, groups)


@torch.no_grad()
def encoded(name: str, model: Model, pngs: list[bytes]) -> list[np.ndarray]:
    """The latent (channels, height, width) float32 of each picture, the mean that the model's VAE gives."""
    if not pngs:
        return []
    from diffusers import AutoModel

    family = family_of(name, model)
    if not hasattr(family, "encode"):
        raise InputError(f"generate.sources.{name}: `{model.family}` encodes no pictures; give shards with latents")
    folder, device = resolve_source(name, model), default_device()
    pipe = SimpleNamespace(vae=AutoModel.from_pretrained(str(folder), subfolder="vae", dtype=torch.float32).to(device))
    latents = []
    for png in pngs:
        picture = torch.from_numpy(pixels(png).copy()).to(device)
        latents.append(family.encode(pipe, picture.movedim(-1, 0)[None] / 255)[0].cpu().numpy())
    return latents
