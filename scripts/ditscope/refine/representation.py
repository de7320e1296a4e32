"""What an encoder and a codebook are worth on samples that neither was trained on: separation, retrieval, occupancy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from ditscope.refine import diagnostics as metrics
from ditscope.refine.codebook import Codebook, condition, embed, parts_of
from ditscope.refine.dataset import HELD_OUT, TRAIN, Dataset, read_text, read_values
from ditscope.refine.encoder import Encoder
from ditscope.refine.features import pooled_embedding
from ditscope.refine.settings import Refine

Row = tuple[str, str, float | None]  # group, metric, value


@dataclass(frozen=True)
class Representation:
    """Measures of an encoder and a codebook."""

    rows: list[Row]
    neighbours: pl.DataFrame  # the table `refine.neighbours`
    points: pl.DataFrame  # the table `refine.tsne`


def judged_split(data: Dataset) -> str:
    """The split that is judged: what is held out or, where that has no neighbours, what was trained on."""
    return HELD_OUT if len(data.rows(HELD_OUT)) > 1 else TRAIN


def judged_rows(data: Dataset) -> np.ndarray:
    """Rows of that split; of more than 2,000 as many, evenly."""
    rows = data.rows(judged_split(data))
    kept = np.linspace(0, len(rows) - 1, min(len(rows), metrics.MOST_SAMPLES)).astype(int)
    return rows[kept]


def represent(
    data: Dataset,
    codes: np.ndarray,
    book: Codebook,
    encoder: Encoder,
    settings: Refine,
    device: torch.device,
) -> Representation:
    """Measures of the judged samples; `codes` (samples,) are pseudo-classes of the whole data set.

    Spaces are the condition that the codebook quantizes, the encoder's pooled maps, and the values themselves.
    """
    rows = judged_rows(data)
    values, own = read_values(data, rows), codes[rows]
    conditions = condition(book, values, data.samples["prompt"][rows].to_list(), *read_text(data, rows))
    pooled = pooled_embedding(encoder, torch.from_numpy(values).to(device)).numpy()
    spaces = {
        "condition": embed(book, conditions).astype(np.float64),
        "latent_mae": pooled,
        "latents": values.reshape(len(values), -1).astype(np.float64),
    }
    a = book.arrays
    text, keyframes = (part.astype(np.float64) for part in parts_of(book, conditions))
    text, keyframes = text - a["text_center"], keyframes - a["keyframe_center"]
    keys = data.samples["key"][rows].to_list()
    table = metrics.neighbour_table(keys, *metrics.nearest(pooled, settings.top_k), own, text, keyframes)
    found: list[Row] = []
    for space, embedding in spaces.items():
        found += as_rows(f"separation {space}", metrics.separation(embedding, own))
    found += as_rows("retrieval latent_mae", metrics.retrieval(table, own, text, keyframes))
    trained = codes[data.rows(TRAIN)]
    found += as_rows("occupancy", metrics.occupancy(trained, book.codes))
    found += as_rows("occupancy judged", metrics.occupancy(own, book.codes))
    counts = np.bincount(trained, minlength=book.codes)
    found += [(f"code {code}", "samples", float(count)) for code, count in enumerate(counts)]
    return Representation(found, table, points_of(data, rows, own, pooled, settings.seed))


def points_of(data: Dataset, rows: np.ndarray, codes: np.ndarray, pooled: np.ndarray, seed: int) -> pl.DataFrame:
    """The table `refine.tsne`: two coordinates of each sample by t-SNE and, where it is installed, by UMAP."""
    tsne, umap = metrics.tsne(pooled, seed), metrics.umap(pooled, seed)
    columns = {"x": tsne[:, 0], "y": tsne[:, 1]}
    for number, name in enumerate(("umap_x", "umap_y")):
        columns[name] = pl.Series([None] * len(rows), dtype=pl.Float64) if umap is None else umap[:, number]
    return data.samples[rows].select("key", "prompt_id").with_columns(code=codes, **columns)


def as_rows(group: str, values: dict[str, Any]) -> list[Row]:
    """Metrics of one group as rows of the long table."""
    return [(group, metric, value) for metric, value in values.items()]
