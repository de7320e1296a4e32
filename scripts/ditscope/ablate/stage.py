"""Ablation: leave a block out, or blur what it says over all tokens, and measure what becomes of the picture."""

import logging
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import polars as pl
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ditscope.ablate.settings import Ablate
from ditscope.ablate.tables import ABLATION
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.metrics import psnr, ssim
from ditscope.core.names import unknown
from ditscope.core.paths import InputFile, OutputFile, OutputFolder, check_apart
from ditscope.core.patterns import block_index, block_type, select_blocks, select_indices
from ditscope.core.scratch import discard, unfinished
from ditscope.core.shards import Sample, png_bytes, read_tar, write_tar
from ditscope.core.tables import write_table
from ditscope.models.block_names import block_names
from ditscope.models.embedders.registry import EmbedBatch, embedder_named, load_embedder
from ditscope.models.families.common import Conditioning
from ditscope.models.loading import Generator, load_generator
from ditscope.models.requests import describe, requests, runs_by_picture
from ditscope.models.sampling import Observer, decode, sample, still, transformers_of
from ditscope.models.settings import Embedder, Model
from ditscope.models.structure import blocks, bound, facts, found, observed
from ditscope.prompts.files import read_runs

log = logging.getLogger(__name__)

NONE = "none"  # the kind of a picture that was made without ablation


def skip(given: Tensor, made: Tensor) -> Tensor:
    """What a block leaves of its tokens if it does nothing."""
    return given


def mean(given: Tensor, made: Tensor) -> Tensor:
    """Tokens (batch, n, d) after a block whose contribution is replaced by its mean over the tokens of the stream."""
    return given + (made - given).mean(dim=1, keepdim=True)


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"skip": skip, "mean": mean}


class Ablation(Observer):
    """Replaces the output of one block at some steps; every other observer then sees what follows from it."""

    def __init__(self, block: str, kind: str, steps: Sequence[int]) -> None:
        self.block, self.replace, self.steps = block, KINDS[kind], frozenset(steps)
        self.handles: list[Any] = []
        self.active = False

    def start(self, model: Generator, sigmas: Tensor, cond: Conditioning, guidance: float) -> None:
        """Hook the block, in each transformer of the pipeline."""
        self.told = facts(model.pipe.transformer)
        described = {block.name: block for block in found(model.pipe.transformer)}
        self.described = described[self.block]
        modules = [blocks(transformer)[self.block] for transformer in transformers_of(model.pipe)]
        self.handles = [module.register_forward_hook(self.hook, with_kwargs=True) for module in modules]

    def before(self, index: int, x: Tensor) -> None:
        """Ablate only at the chosen steps."""
        self.active = index in self.steps

    def hook(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> Any:
        """The block's output, replaced in every stream; one that it does not put out stays absent."""
        if not self.active:
            return None
        arguments = bound(module, inputs, named)
        block = observed(self.described, module, arguments, output, self.told)
        streams = zip(block.streams, [output] if block.bare else output, strict=True)
        left = tuple(self.replace(arguments[s.argument], made) if s.argument else made for s, made in streams)
        return left[0] if block.bare else left

    def stop(self) -> None:
        """Remove the hook."""
        for handle in self.handles:
            handle.remove()


def ablate(
    name: str,
    model: Model,
    prompts: list[InputFile],
    out: OutputFile,
    embedders: dict[str, Embedder],
    images: OutputFile | None = None,
    settings: Ablate = Ablate(),
    partial: OutputFolder | None = None,
) -> None:
    """Sample the same runs with each block ablated in turn and measure how far each picture is from the model's own.

    Leaves `out` (table `ablation`, a row per run, block and kind) and `images` (beside it where no path is given), a
    tar with the pictures of the first run. Blocks that are done in `partial` are not sampled again.
    """
    steps = check_settings(settings, model, embedders)
    images = images or out.with_name(out.name.removesuffix(".parquet") + ".tar")
    check_apart(prompts, [out, images])
    runs = read_runs(*prompts)
    runs = runs[: settings.generations] if settings.generations else runs
    names = block_names(name, model)
    chosen = select_blocks(settings.blocks, names, "ablate.blocks")
    loaded = load_generator(name, model)
    parts = unfinished(partial, out, {"model": model, "runs": runs, "settings": settings})
    embed = load_embedder(settings.features, embedders[settings.features]) if settings.features else None
    groups = runs_by_picture(name, model, runs)
    firsts = [group[0] for group in groups]
    records = [describe(loaded, run) for run in firsts]
    reference = sampled(loaded, firsts, [], settings.batch_size)
    samples: list[Sample] = [picture(records[0], NONE, NONE, reference[1][0])]
    for block in tqdm(chosen, desc=f"{name}: ablation", unit="block", disable=None):
        part = parts / f"{block}.tar"
        if not part.exists():
            ablated: list[Sample] = []
            for kind in settings.kinds:
                latents, pictures = sampled(loaded, firsts, [Ablation(block, kind, steps)], settings.batch_size)
                for i, record in enumerate(records):
                    effect = effects((reference[0][i], reference[1][i]), (latents[i], pictures[i]), embed)
                    place = {"depth": names.index(block), "ablated_steps": settings.steps}
                    sample_of = picture(record, block, kind, pictures[i])
                    sample_of["json"] |= place | effect
                    ablated.append(sample_of)
            write_tar(ablated, part)
        samples += list(read_tar(part))
        log.info("%s: %s ablated", name, block)
    rows = rows_of(samples, {record["request_hash"]: group for record, group in zip(records, groups, strict=True)})
    wanted = product(((run["prompt_id"], run["seed"]) for run in runs), chosen, settings.kinds)
    left = (((row["prompt_id"], row["seed"]), row["block"], row["kind"]) for row in rows)
    check_complete(out, "runs, blocks and kinds", wanted, left)
    table = pl.DataFrame(rows, schema=ABLATION.schema()).sort("depth", "kind", "prompt_id", "seed")
    write_table(table, out, ABLATION)
    write_tar([s for s in samples if s["json"]["request_hash"] == records[0]["request_hash"]], images)
    discard(parts)


def check_settings(settings: Ablate, model: Model, embedders: dict[str, Embedder]) -> list[int]:
    """The numbers of the steps to ablate. Raises InputError for kinds, features or steps that there are not."""
    for kind in settings.kinds:
        if kind not in KINDS:
            raise InputError(unknown("ablate.kinds", kind, KINDS, "a kind of ablation"))
    if settings.features:
        embedder_named(settings.features, embedders, "ablate.features")
    return select_indices(settings.steps, model.steps, "ablate.steps")


def rows_of(samples: list[Sample], runs: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """Rows of the table `ablation`: one per ablated picture and run that asked for it, `runs` by request hash."""
    return [
        {column: s["json"][column] for column in ABLATION.columns} | {key: run[key] for key in ("prompt_id", "seed")}
        for s in samples
        if s["json"]["kind"] != NONE
        for run in runs[s["json"]["request_hash"]]
    ]


def sampled(
    model: Generator, runs: list[dict], observers: Sequence[Observer], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Latents (runs, channels, height, width) and pictures (runs, height, width, 3) of runs, under observers."""
    latents, pictures = [], []
    for begin in range(0, len(runs), batch_size):
        x = sample(model, *requests(runs[begin : begin + batch_size]), observers)
        latents.append(x.float().cpu().numpy())
        pictures.append(np.stack([still(image) for image in decode(model, x).numpy()]))
    return np.concatenate(latents), np.concatenate(pictures)


def picture(record: dict, block: str, kind: str, image: np.ndarray) -> Sample:
    """A sample of the tar of pictures, with what identifies it."""
    about = {column: record[column] for column in ("request_hash", "model", "prompt_id", "prompt", "seed")}
    about |= {"block": block, "block_type": block_type(block) if block != NONE else NONE, "kind": kind}
    about |= {"block_index": block_index(block) if block != NONE else -1}
    return {"__key__": f"{record['request_hash']}-{block}-{kind}", "png": png_bytes(image), "json": about}


def effects(
    reference: tuple[np.ndarray, np.ndarray], ablated: tuple[np.ndarray, np.ndarray], embed: EmbedBatch | None
) -> dict[str, float | None]:
    """Distances of an ablated run to the model's own; each is (latents, picture (height, width, 3) uint8)."""
    latents, image = reference
    distance = None
    if embed:
        vectors = embed([Image.fromarray(image), Image.fromarray(ablated[1])])
        distance = 1 - float(vectors[0] @ vectors[1])
    return {
        "latent_relative_l2": float(np.linalg.norm(ablated[0] - latents) / np.linalg.norm(latents)),
        "psnr_db": psnr(image, ablated[1]),
        "ssim": ssim(image, ablated[1]),
        "feature_cosine_distance": distance,
    }
