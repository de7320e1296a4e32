"""Embed: a vector for each text or image of the trajectories."""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from PIL import Image
from tqdm import tqdm

from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFile
from ditscope.core.picture_file import rgb_image
from ditscope.core.shards import read_tar
from ditscope.core.tables import read_table, write_table
from ditscope.embed.settings import Embed
from ditscope.embed.tables import EMBEDDINGS
from ditscope.models.embedders.random_walk import FAMILY as RANDOM_WALK
from ditscope.models.embedders.random_walk import random_walk
from ditscope.models.embedders.vectors import FAMILY as VECTORS
from ditscope.models.embedders.vectors import vectors_of
from ditscope.models.settings import Embedder

if TYPE_CHECKING:
    from ditscope.models.embedders.registry import EmbedBatch

log = logging.getLogger(__name__)


def embed(
    name: str,
    embedder: Embedder,
    trajectories: InputFile,
    images: InputFile,
    out: OutputFile,
    settings: Embed = Embed(),
) -> None:
    """Embed the texts (the prompt among them) or the images of one shard of trajectories.

    Leaves `out` (table `embeddings`, one row per state of the embedder's modality, in the order of the trajectories).
    Equal states are embedded once, so their vectors are equal to the last bit. `images` is read by image embedders
    only. Raises InputError on a missing image and on a vector that is zero, NaN or Inf.
    """
    rows = read_table(trajectories, "trajectories").filter(pl.col("type") == embedder.modality.upper())
    if embedder.family == RANDOM_WALK:
        vectors = walk_vectors(rows, embedder.dimension)
    elif embedder.family == VECTORS:
        vectors = vectors_of(rows, Path(embedder.source))
    else:
        from ditscope.models.embedders.registry import load_embedder  # torch, which the others have no use for

        states = text_states(rows) if embedder.modality == "text" else image_states(rows, images)
        vectors = state_vectors(rows, states, load_embedder(name, embedder), settings.batch_size, name)
    refuse_degenerate(vectors, rows, f"{trajectories}: {name}")
    table = rows.select(
        pl.lit(name).alias("embedder"),
        "network",
        "run_id",
        "sequence_number",
        pl.lit(embedder.modality).alias("modality"),
        pl.Series("vector", vectors.tolist(), pl.List(pl.Float32)),
    )
    key = ("network", "run_id", "sequence_number")
    check_complete(out, "states", rows.select(key).rows(), table.select(key).rows())
    write_table(table.cast(EMBEDDINGS.schema()), out, EMBEDDINGS)
    log.info("%s: %d states, %d numbers each", name, *vectors.shape)


def text_states(rows: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """(output_key, text) of each distinct text."""
    return rows.unique("output_key", keep="first", maintain_order=True).select("output_key", "output_text").iter_rows()


def image_states(rows: pl.DataFrame, images: Path) -> Iterator[tuple[str, Image.Image]]:
    """(output_key, RGB image) of each distinct image, read one at a time; all of them must be there."""
    missing = set(rows["output_key"])
    for sample in read_tar(images):
        if sample["__key__"] in missing:
            missing.remove(sample["__key__"])
            yield sample["__key__"], rgb_image(sample["png"])
    if missing:
        raise InputError(f"{images}: no image {min(missing)}.png, which the trajectories name; run trajectories again")


def state_vectors(
    rows: pl.DataFrame, states: Iterator[tuple[str, str | Image.Image]], embed: "EmbedBatch", batch_size: int, name: str
) -> np.ndarray:
    """The vector of each row (rows, dimension) float32, with every distinct state embedded once, in batches."""
    vectors: dict[str, np.ndarray] = {}
    states = iter(tqdm(states, desc=name, unit="state", disable=None))
    while batch := list(islice(states, batch_size)):
        keys, items = zip(*batch, strict=True)
        vectors |= zip(keys, embed(list(items)), strict=True)
    return np.stack([vectors[key] for key in rows["output_key"]]).astype(np.float32)


def walk_vectors(rows: pl.DataFrame, dimension: int) -> np.ndarray:
    """The random-walk control: each run's walk (see `random_walk`), one state per row in order of sequence number."""
    vectors = np.empty((rows.height, dimension), np.float32)
    for (run_id,), part in rows.with_row_index("row").group_by("run_id", maintain_order=True):
        order = part.sort("sequence_number")["row"].to_numpy()
        vectors[order] = random_walk(str(run_id), len(order), dimension)
    return vectors


def refuse_degenerate(vectors: np.ndarray, rows: pl.DataFrame, where: str) -> None:
    """Raise an InputError that names the first row whose vector is NaN, Inf or zero."""
    bad = ~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)
    for row in rows.filter(bad).head(1).iter_rows(named=True):
        state = f"run {row['run_id']} (prompt {row['prompt_id']}), sequence number {row['sequence_number']}"
        raise InputError(f"{where} gives a zero, NaN or Inf vector for {state}; check the embedder's weights")
