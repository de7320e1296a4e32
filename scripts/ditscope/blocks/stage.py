"""What each block does, from a capture: how it changes its input, how the text moves, when the picture is there."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ditscope.blocks.settings import Blocks
from ditscope.blocks.tables import DECODABILITY, DECODABLE, RESIDUAL, SIMILARITY, TEXT_DRIFT
from ditscope.capture.files import EMBEDDING, captures_in, decoded_file, picture_file, read_metadata, rows_of_runs
from ditscope.capture.load import load_capture, tokens
from ditscope.capture.tables import PLACE
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.metrics import psnr
from ditscope.core.paths import InputFolder, OutputFolder
from ditscope.core.patterns import block_index, block_type
from ditscope.core.picture_file import pixels, rgb_image
from ditscope.core.tables import read_table, write_table
from ditscope.models.embedders.registry import EmbedBatch, embedder_named, load_embedder
from ditscope.models.settings import Embedder

log = logging.getLogger(__name__)

EMBED_BATCH = 32
HALVES = ("cond", "uncond")
TABLES = {table.stem: table for table in (SIMILARITY, RESIDUAL, TEXT_DRIFT, DECODABILITY, DECODABLE)}


def blocks(
    captures: InputFolder, out: OutputFolder, embedders: dict[str, Embedder], settings: Blocks = Blocks()
) -> None:
    """Describe what each block of captured generations does: one table for each question, in the folder `out`.

    `captures` is a folder of generations with stored tensors and decoded clean estimates; what a capture lacks leaves
    its tables without rows. docs/outputs/blocks.md explains the tables and their columns.
    """
    folders = captures_in(captures)
    if not folders:
        raise InputError(f"{captures}: holds no finished capture; run the stage `capture` first")
    embed = None
    if settings.features:
        embed = load_embedder(settings.features, embedder_named(settings.features, embedders, "blocks.features"))
    tables: dict[str, list[pl.DataFrame]] = {name: [] for name in TABLES}
    for folder in tqdm(folders, desc="blocks", unit="generation", disable=None):
        depths = dict(read_table(folder / "statistics.parquet", "capture_statistics").select("block", "depth").rows())
        capture = load_capture(folder)
        rows: dict[str, list[dict]] = {name: [] for name in TABLES}
        stream_rows(capture, depths, rows)
        rows["decodability"] += (decodability := decodability_rows(folder, capture["metadata"], depths, embed))
        rows["decodable"] += decodable_rows(decodability, settings)
        for name, declared in TABLES.items():
            frame = pl.DataFrame(rows[name], schema=declared.schema())
            tables[name].append(rows_of_runs(frame, capture["metadata"]))
        log.info("%s: generation %s analysed", captures.name, folder.name)
    shared = [(data, run) for data in map(read_metadata, folders) for run in data.get("runs") or [data]]
    asked = [(data["generation_id"], run["prompt_id"]) for data, run in shared]
    for name, declared in TABLES.items():
        table = pl.concat(tables[name])
        if name in ("similarity", "residual") and len(table):  # none of captures without tensors
            left = table.select("generation_id", "prompt_id").unique(maintain_order=True).rows()
            check_complete(out / f"{name}.parquet", "generations and prompts", asked, left)
        write_table(table, out / f"{name}.parquet", declared)


# Measures: pure functions of tokens ----------------------------------------------------------------------------------


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of x (n, d) and y (n, e), 0 to 1 (Kornblith et al. 2019, equation 3 and 5).

    HSIC(x x', y y') / sqrt(HSIC(x x', x x') HSIC(y y', y y')) over the n tokens, by the smaller of the two forms: Gram
    matrices (n, n) or feature covariances (d, e). NaN where all tokens of x or of y are the same.
    """
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    if len(x) <= max(x.shape[1], y.shape[1]):
        grams = x @ x.T, y @ y.T
        cross, norms = (grams[0] * grams[1]).sum(), [gram.norm() for gram in grams]
    else:
        cross, norms = (y.T @ x).square().sum(), [(t.T @ t).norm() for t in (x, y)]
    return float(cross / (norms[0] * norms[1]))


def token_cosine(x: Tensor, y: Tensor) -> float:
    """Mean over tokens of the cosine of x (n, d) and y (n, d); a token of zeros counts as 0."""
    return float(torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=1).mean())


def relative_l2(reference: Tensor, x: Tensor) -> float:
    """Euclidean norm of x - reference, over that of the reference, over all tokens together."""
    return float((x.double() - reference.double()).norm() / reference.double().norm())


def rms(x: Tensor) -> float:
    """Root of the mean square."""
    return float(x.double().square().mean().sqrt())


def residual(previous: Tensor, x: Tensor) -> dict[str, float]:
    """What a block adds to tokens (n, d): the size of its update, and its cosine with what it is added to."""
    update = x.double() - previous.double()
    return {
        "relative_update": relative_l2(previous, x),
        "update_cosine": token_cosine(previous, update),
        "input_rms": rms(previous),
        "update_rms": rms(update),
    }


# Rows ----------------------------------------------------------------------------------------------------------------


def where(metadata: dict, step: int, block: str, depth: int) -> dict[str, Any]:
    """The columns that every table has."""
    kind = block_type(block) if depth >= 0 else EMBEDDING
    return {
        "generation_id": metadata["generation_id"],
        "prompt_id": metadata["prompt_id"],
        "model": metadata["model"],
        "step": step,
        "sigma": metadata["sigmas"][step],
        "block": block,
        "block_type": kind,
        "block_index": block_index(block) if depth >= 0 else 0,
        "depth": depth,
    }


def stream_rows(capture: dict, depths: dict[str, int], rows: dict[str, list[dict]]) -> None:
    """Rows of similarity, residual and text_drift of one generation; two blocks are in memory at a time."""
    metadata = capture["metadata"]
    names = [EMBEDDING] * (EMBEDDING in capture) + list(metadata["captured_blocks"])
    every = {EMBEDDING: -1} | depths
    for position, step in enumerate(metadata["captured_steps"]):
        previous: dict[str, tuple[str, Any]] = {}  # of each stream, since the last block that was not captured
        before = -2
        text: Tensor | None = None
        for block in names:
            here, now = where(metadata, step, block, every[block]), tokens(capture, block, position)
            previous = previous if every[block] == before + 1 else {}
            pairs = [
                ({"stream": s, "half": HALVES[i], "previous": previous[s][0]}, previous[s][1][i], now[s][i])
                for s in now
                if s in previous
                for i in range(len(now[s]))
            ]
            for about, given, made in pairs:
                if given.shape == made.shape:
                    alike = {"cosine": token_cosine(given, made), "linear_cka": linear_cka(given, made)}
                    rows["similarity"].append(here | about | alike)
                    rows["residual"].append(here | about | residual(given, made))
            if "txt" in now:
                text = now["txt"] if text is None else text
                first = tokens(capture, block, 0)["txt"]
                for i, half in enumerate(HALVES[: len(text)]):
                    if text[i].shape != now["txt"][i].shape:  # padded on the way
                        continue
                    rows["text_drift"].append(
                        here
                        | {
                            "half": half,
                            "cosine_distance": 1 - token_cosine(text[i], now["txt"][i]),
                            "relative_l2": relative_l2(text[i], now["txt"][i]),
                            "step_cosine_distance": 1 - token_cosine(first[i], now["txt"][i]),
                            "step_relative_l2": relative_l2(first[i], now["txt"][i]),
                        }
                    )
            previous |= {stream: (block, values) for stream, values in now.items()}
            before = every[block]


def decodability_rows(
    folder: Path, metadata: dict, depths: dict[str, int], embed: EmbedBatch | None = None
) -> list[dict]:
    """How far each block's decoded clean estimate is from the generated picture, in the order in which blocks run."""
    order = [(step, block) for step in metadata["captured_steps"] for block in metadata["captured_blocks"]]
    order = [(step, block) for step, block in order if decoded_file(folder, "x0", step, block).exists()]
    if not order:
        log.warning("%s: no decoded clean estimates; capture with should_decode_intermediates and decode x0", folder)
        return []
    pictures = [decoded_file(folder, "x0", step, block) for step, block in order]
    final = pixels(picture_file(folder).read_bytes())
    distances = feature_distances(final, pictures, embed) if embed else [None] * len(order)
    return [
        where(metadata, step, block, depths[block])
        | {"psnr_db": psnr(final, pixels(path.read_bytes())), "feature_cosine_distance": distance}
        for (step, block), path, distance in zip(order, pictures, distances, strict=True)
    ]


def feature_distances(final: np.ndarray, pictures: Sequence[Path], embed: EmbedBatch) -> list[float]:
    """Cosine distance of the features of each picture to those of the generated one."""
    target = embed([Image.fromarray(final)])[0]
    distances: list[float] = []
    for begin in range(0, len(pictures), EMBED_BATCH):
        batch = [rgb_image(path.read_bytes()) for path in pictures[begin : begin + EMBED_BATCH]]
        distances += (1 - embed(batch) @ target).tolist()
    return distances


def decodable_rows(rows: list[dict], settings: Blocks) -> Iterator[dict]:
    """For each criterion and step the first block whose clean estimate is near enough to the generated picture.

    `rows` are a generation's rows of decodability. `first` marks the first such block of the whole run.
    """
    criteria = {
        "psnr_db": (settings.psnr_db, lambda value: value >= settings.psnr_db),
        "feature_cosine_distance": (settings.feature_distance, lambda value: value <= settings.feature_distance),
    }
    for criterion, (threshold, near) in criteria.items():
        seen: set[int] = set()
        for row in rows:
            if row[criterion] is not None and near(row[criterion]) and row["step"] not in seen:
                place = {key: row[key] for key in PLACE}
                yield place | {
                    "criterion": criterion,
                    "threshold": threshold,
                    "distance": row[criterion],
                    "first": not seen,
                }
                seen.add(row["step"])
