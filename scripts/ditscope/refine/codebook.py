"""Pseudo-classes: quantize what a refiner is conditioned on, the prompt and the kept patches, by k-means.

The condition embedding joins two parts, each centred and scaled to unit mean squared norm over the set: the TF-IDF
vector of the prompt's words and the mean of the anchor patches at the hardest corruption level, taken at positions that
are the same for every sample. A codebook file holds all that is needed to assign a new prompt with its anchors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import save_file
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer

from ditscope.core.atomic import give_usual_mode, replacing
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFile
from ditscope.core.tables import write_table
from ditscope.refine.dataset import open_dataset
from ditscope.refine.files import describe, read_described
from ditscope.refine.keys import key_grid
from ditscope.refine.latents import LatentSet, latent_set
from ditscope.refine.patches import patchify, token_grid
from ditscope.refine.settings import Refine
from ditscope.refine.tables import ASSIGNMENTS

MAX_WORDS = 512  # most frequent words that the vocabulary keeps


@dataclass(frozen=True)
class Codebook:
    """Centroids of the condition embedding and all that computes it."""

    words: list[str]
    arrays: dict[str, np.ndarray]  # idf, anchors, text_center, text_scale, keyframe_center, keyframe_scale, centroids


def build_codebook(
    samples: InputFile, about: InputFile, codebook: OutputFile, assignments: OutputFile, settings: Refine = Refine()
) -> None:
    """Quantize prompts and anchor patches of the training split to pseudo-classes; held-out samples are assigned.

    Leaves `codebook` (safetensors) and `assignments` (table `refine.assignments`, one row per sample, in their order).
    """
    data = open_dataset(samples, about)
    latents = latent_set(data, np.arange(len(data)))
    fitted = fit_codebook(latent_set(data, data.rows("train")), settings)
    save_codebook(fitted, codebook)
    write_table(assignments_of(fitted, latents, settings), assignments, ASSIGNMENTS)


def assignments_of(codebook: Codebook, latents: LatentSet, settings: Refine) -> pl.DataFrame:
    """The table `refine.assignments`: the pseudo-class of each sample and its distance to the centroid."""
    codes, distances = assign(codebook, embed_set(codebook, latents, settings))
    columns = {name: [r[name] for r in latents.records] for name in ("key", "prompt_id", "prompt", "seed")}
    return pl.DataFrame(columns | {"code": codes, "distance": distances})


def fit_codebook(latents: LatentSet, settings: Refine) -> Codebook:
    """Learn vocabulary, scales and centroids from a set of latents and their prompts."""
    if len(latents) < 2:
        raise InputError("refine: a single sample has no neighbours; generate at least 2 images")
    if not 1 <= settings.codes <= len(latents):
        raise InputError(f"refine.codes: {settings.codes} pseudo-classes from {len(latents)} samples; lower it")
    if not any(record["prompt"].split() for record in latents.records):
        raise InputError("refine: no image has a prompt, which its pseudo-classes are made of; give pictures captions")
    vectorizer = TfidfVectorizer(max_features=MAX_WORDS, token_pattern=r"\S+")
    text = vectorizer.fit_transform([r["prompt"] for r in latents.records]).toarray()
    grid = token_grid(latents.space, settings.patch)
    nodes = np.arange(int(np.prod(grid))).reshape(int(np.prod(key_grid(grid, settings.keys))), -1)  # tokens of each
    anchors = np.sort(
        nodes[np.random.default_rng(settings.seed).permutation(len(nodes))[: settings.min_anchors]].ravel()
    )
    arrays = {"idf": vectorizer.idf_, "anchors": anchors}
    keyframes = anchor_means(latents.values, anchors, settings.patch)
    for name, part in (("text", text), ("keyframe", keyframes)):
        center = part.mean(0)
        spread = np.sqrt(((part - center) ** 2).sum(1).mean())
        arrays |= {f"{name}_center": center, f"{name}_scale": np.array([1 / spread if spread > 1e-9 else 1.0])}
    arrays["keyframe_scale"] = arrays["keyframe_scale"] * settings.keyframe_weight
    unclustered = Codebook(list(vectorizer.get_feature_names_out()), arrays)
    embedding = embed_set(unclustered, latents, settings)
    means = KMeans(settings.codes, n_init=10, random_state=settings.seed).fit(embedding)
    return Codebook(unclustered.words, arrays | {"centroids": means.cluster_centers_})


def anchor_means(values: np.ndarray, anchors: np.ndarray, patch: int) -> np.ndarray:
    """Mean anchor patch (samples, channels * values of a patch) of latents (samples, channels, *space), float64."""
    return patchify(values, patch)[:, anchors].mean(1, dtype=np.float64)


def embed_text(codebook: Codebook, prompts: list[str]) -> np.ndarray:
    """TF-IDF vectors (prompts, words) of unit length; words outside the vocabulary are passed over."""
    vectorizer = TfidfVectorizer(vocabulary=codebook.words, token_pattern=r"\S+")
    vectorizer.idf_ = codebook.arrays["idf"]
    return vectorizer.transform(prompts).toarray()


def embed_conditions(codebook: Codebook, text: np.ndarray, keyframes: np.ndarray) -> np.ndarray:
    """Condition embeddings (samples, dimensions) from TF-IDF vectors and mean anchor patches."""
    a = codebook.arrays
    parts = ((text, "text"), (keyframes, "keyframe"))
    return np.concatenate([(x - a[f"{name}_center"]) * a[f"{name}_scale"] for x, name in parts], 1)


def embed_set(codebook: Codebook, latents: LatentSet, settings: Refine) -> np.ndarray:
    """Condition embeddings of a whole set."""
    text = embed_text(codebook, [r["prompt"] for r in latents.records])
    return embed_conditions(codebook, text, anchor_means(latents.values, codebook.arrays["anchors"], settings.patch))


def assign(codebook: Codebook, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid of each embedding and the Euclidean distance to it."""
    distances = np.linalg.norm(embedding[:, None] - codebook.arrays["centroids"][None], axis=-1)
    return distances.argmin(1), distances.min(1)


def codebook_parts(codebook: Codebook) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A codebook as plain data and arrays, for a file of its own or a part of a refiner's."""
    return {"words": codebook.words}, {name: np.ascontiguousarray(a) for name, a in codebook.arrays.items()}


def codebook_from(about: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Codebook:
    """The inverse of `codebook_parts`."""
    return Codebook(list(about["words"]), arrays)


def save_codebook(codebook: Codebook, path: Path) -> None:
    """Write a codebook to one safetensors file that describes itself."""
    about, arrays = codebook_parts(codebook)
    with replacing(path) as partial:
        save_file(arrays, partial, describe("codebook", **about))
        give_usual_mode(partial)


def load_codebook(path: Path) -> Codebook:
    """Read what `save_codebook` wrote."""
    return codebook_from(*read_described(path, "codebook", "np"))
