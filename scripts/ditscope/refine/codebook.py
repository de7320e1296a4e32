"""Pseudo-classes: quantize what a refiner is conditioned on, the text and the kept patches.

The condition of a sample joins two parts, each centred and scaled to unit mean squared norm over the training split:
its text (the mean of its tokens or, where the data have none, the TF-IDF vector of the prompt's words) and the mean of
the key patches at the hardest corruption level, taken at positions that are the same for every sample. A codebook
holds all that is needed to assign a new sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from safetensors.numpy import save_file
from sklearn.feature_extraction.text import TfidfVectorizer

from ditscope.core.atomic import give_usual_mode, replacing
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFile, OutputFile
from ditscope.core.tables import write_table
from ditscope.refine.dataset import Dataset, open_dataset, read_text, read_values
from ditscope.refine.files import describe, read_described
from ditscope.refine.keys import key_grid
from ditscope.refine.patches import patchify, token_grid
from ditscope.refine.quantizers import chunks, encoded, nearest_code, quantize
from ditscope.refine.settings import Refine
from ditscope.refine.tables import ASSIGNMENTS

MAX_WORDS = 512  # most frequent words that the vocabulary keeps
FLAT = 1e-9  # spread below which a part says nothing and is left at 0


@dataclass(frozen=True)
class Codebook:
    """Centroids of the condition embedding and all that computes it."""

    text: str  # tokens (their mean), words (TF-IDF), or none
    words: list[str]  # vocabulary of the TF-IDF
    patch: int
    quantizer: str
    tried: list[dict[str, Any]]  # sizes that were tried, with their occupancy, and why one was not kept
    # text_center, text_scale, keyframe_center, keyframe_scale, keys (tokens), centroids; idf; encoder.* of vq
    arrays: dict[str, np.ndarray]

    @property
    def codes(self) -> int:
        """How many pseudo-classes there are."""
        return len(self.arrays["centroids"])


def build_codebook(
    samples: InputFile,
    about: InputFile,
    codebook: OutputFile,
    assignments: OutputFile,
    settings: Refine = Refine(),
    start: Annotated[str, "file of the refiner that training goes on from, whose pseudo-classes stay"] = "",
) -> None:
    """Quantize texts and key patches of the training split to pseudo-classes; held-out samples are assigned.

    Leaves `codebook` (safetensors) and `assignments` (table `refine.assignments`, one row per sample, in their order).
    """
    data = open_dataset(samples, about)
    if start:
        fitted = codebook_within(Path(start))
        conditions = conditions_of(fitted, data)
    else:
        fitted, conditions = fit_codebook(data, settings)
    save_codebook(fitted, codebook)
    write_table(assignments_of(fitted, data, conditions), assignments, ASSIGNMENTS)


def assign_codes(samples: InputFile, about: InputFile, codebook: InputFile, assignments: OutputFile) -> None:
    """Give new samples the pseudo-classes of a codebook that is there, as table `refine.assignments`."""
    data, book = open_dataset(samples, about), load_codebook(codebook)
    write_table(assignments_of(book, data, conditions_of(book, data)), assignments, ASSIGNMENTS)


def assignments_of(codebook: Codebook, data: Dataset, conditions: np.ndarray) -> pl.DataFrame:
    """The table `refine.assignments`: the pseudo-class of each sample and its distance to the centroid."""
    codes, distances = assign(codebook, conditions)
    return data.samples.select("key", "prompt_id", "prompt", "seed").with_columns(code=codes, distance=distances)


# Fitting ------------------------------------------------------------------------------------------------------------


def fit_codebook(data: Dataset, settings: Refine) -> tuple[Codebook, np.ndarray]:
    """A codebook learnt from the training split, and the conditions (samples, dimensions) of all samples."""
    train = data.rows("train")
    if len(train) < 2:
        raise InputError("refine: a single sample has no neighbours; take at least 2 for training")
    if not 1 <= settings.codes <= len(train):
        raise InputError(f"refine.codes: {settings.codes} pseudo-classes from {len(train)} samples; lower it")
    keys = key_tokens(data.space, settings)
    words, idf, kind = vocabulary(data, train)
    unscaled = Codebook(kind, words, settings.patch, settings.quantizer, [], {"keys": keys, "idf": idf})
    conditions = conditions_of(unscaled, data)
    split = conditions.shape[1] - keyframe_size(unscaled, data)
    scales = part_scales(conditions, train, split)
    scales["keyframe_scale"] = scales["keyframe_scale"] * np.float32(settings.keyframe_weight)
    scaled = Codebook(kind, words, settings.patch, settings.quantizer, [], unscaled.arrays | scales)
    sizes = settings.codes, settings.fallback_codes, settings.seed, settings.vq_steps
    arrays, tried = quantize(lambda rows: embed(scaled, conditions[rows]), train, settings.quantizer, *sizes)
    return Codebook(kind, words, settings.patch, settings.quantizer, tried, scaled.arrays | arrays), conditions


def key_tokens(space: tuple[int, ...], settings: Refine) -> np.ndarray:
    """Tokens of as many patches or frames as the hardest level keeps, at positions that depend on the seed alone."""
    grid = token_grid(space, settings.patch)
    nodes = np.arange(int(np.prod(grid))).reshape(int(np.prod(key_grid(grid, settings.keys))), -1)  # tokens of each
    chosen = np.random.default_rng(settings.seed).permutation(len(nodes))[: settings.min_keys]
    return np.sort(nodes[chosen].ravel())


def vocabulary(data: Dataset, train: np.ndarray) -> tuple[list[str], np.ndarray, str]:
    """Words and idf of the training prompts, and which kind of text there is: tokens, words or none."""
    prompts = data.samples["prompt"].to_list()
    if data.words or not any(prompts[row].split() for row in train):
        return [], np.zeros(0), "tokens" if data.words else "none"
    vectorizer = TfidfVectorizer(max_features=MAX_WORDS, token_pattern=r"\S+").fit([prompts[row] for row in train])
    return list(vectorizer.get_feature_names_out()), vectorizer.idf_, "words"


def part_scales(conditions: np.ndarray, train: np.ndarray, split: int) -> dict[str, np.ndarray]:
    """Centre of either part over the training split, and the factor that gives it unit mean squared norm; streamed."""
    total, squares = np.zeros(conditions.shape[1]), np.zeros(conditions.shape[1])
    for rows in chunks(train):
        total += conditions[rows].sum(0, dtype=np.float64)
    center = total / len(train)
    for rows in chunks(train):
        squares += ((conditions[rows].astype(np.float64) - center) ** 2).sum(0)
    arrays = {}
    for name, part in (("text", slice(None, split)), ("keyframe", slice(split, None))):
        spread = np.sqrt(squares[part].sum() / len(train))
        arrays[f"{name}_center"] = center[part].astype(np.float32)
        arrays[f"{name}_scale"] = np.array([1 / spread if spread > FLAT else 0], np.float32)
    return arrays


# Using --------------------------------------------------------------------------------------------------------------


def conditions_of(codebook: Codebook, data: Dataset) -> np.ndarray:
    """Conditions (samples, dimensions) of a whole data set, read chunk by chunk."""
    conditions: np.ndarray | None = None
    for rows in chunks(np.arange(len(data)), 256):
        prompts = data.samples["prompt"][rows].to_list()
        part = condition(codebook, read_values(data, rows), prompts, *read_text(data, rows))
        if conditions is None:
            conditions = np.empty((len(data), part.shape[1]), part.dtype)
        conditions[rows] = part
    if conditions is None:
        raise InputError("refine: the data set has no samples")
    return conditions


def condition(
    codebook: Codebook, values: np.ndarray, prompts: list[str], text: np.ndarray, there: np.ndarray
) -> np.ndarray:
    """Text and keys, joined, (samples, dimensions) float16: what a codebook is fitted to and assigns.

    `values` (samples, channels, *space) are standardised; `text` (samples, words, width) and `there` (samples, words)
    are the tokens, which count where the codebook has them.
    """
    keyframes = key_means(values, codebook.arrays["keys"], codebook.patch)
    # Tokens are float16 as they are stored, and a set of 10^5 samples is held at once: half the memory.
    return np.concatenate([text_vectors(codebook, prompts, text, there), keyframes], 1).astype(np.float16)


def text_vectors(codebook: Codebook, prompts: list[str], text: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Text part of the condition (samples, dimensions): mean token, TF-IDF of unit length, or nothing."""
    if codebook.text == "tokens":
        return (text * there[..., None]).sum(1) / np.maximum(there.sum(1), 1)[:, None]
    if codebook.text == "none":
        return np.zeros((len(prompts), 0))
    vectorizer = TfidfVectorizer(vocabulary=codebook.words, token_pattern=r"\S+")
    vectorizer.idf_ = codebook.arrays["idf"]
    return vectorizer.transform(prompts).toarray()  # words outside the vocabulary are passed over


def key_means(values: np.ndarray, keys: np.ndarray, patch: int) -> np.ndarray:
    """Mean key patch (samples, channels * values of a patch) of values (samples, channels, *space), float64."""
    return patchify(values, patch)[:, keys].mean(1, dtype=np.float64)


def keyframe_size(codebook: Codebook, data: Dataset) -> int:
    """Dimensions of the keys' part of a condition."""
    return key_means(np.zeros((1, data.channels, *data.space)), codebook.arrays["keys"], codebook.patch).shape[1]


def parts_of(codebook: Codebook, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Text and keys (samples, dimensions) of conditions."""
    split = len(codebook.arrays["text_center"])
    return conditions[:, :split], conditions[:, split:]


def embed(codebook: Codebook, conditions: np.ndarray) -> np.ndarray:
    """Condition embeddings (samples, dimensions) float32: both parts centred and scaled."""
    a = codebook.arrays
    parts = zip(("text", "keyframe"), parts_of(codebook, conditions), strict=True)
    return np.concatenate([(x.astype(np.float32) - a[f"{n}_center"]) * a[f"{n}_scale"] for n, x in parts], 1)


def assign(codebook: Codebook, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-class of each condition and the Euclidean distance to its centroid; chunk by chunk."""
    codes, distances = [], []
    for rows in chunks(np.arange(len(conditions))):
        found = nearest_code(codebook.arrays["centroids"], encoded(codebook.arrays, embed(codebook, conditions[rows])))
        codes.append(found[0])
        distances.append(found[1])
    return np.concatenate(codes), np.concatenate(distances)


# Files --------------------------------------------------------------------------------------------------------------


def codebook_parts(codebook: Codebook) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A codebook as plain data and arrays, for a file of its own or a part of a refiner's."""
    about = {name: value for name, value in vars(codebook).items() if name != "arrays"}
    return about, {name: np.ascontiguousarray(a) for name, a in codebook.arrays.items()}


def codebook_from(about: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Codebook:
    """The inverse of `codebook_parts`."""
    names = ("text", "words", "patch", "quantizer", "tried")
    return Codebook(**{name: about[name] for name in names}, arrays=arrays)


def save_codebook(codebook: Codebook, path: Path) -> None:
    """Write a codebook to one safetensors file that describes itself."""
    about, arrays = codebook_parts(codebook)
    with replacing(path) as partial:
        save_file(arrays, partial, describe("codebook", **about))
        give_usual_mode(partial)


def codebook_within(refiner: Path) -> Codebook:
    """The codebook that the file of a refiner holds."""
    about, tensors = read_described(refiner, "refiner", "np", "codebook.")  # weights may be bfloat16
    arrays = {name.removeprefix("codebook."): array for name, array in tensors.items()}
    return codebook_from(about["codebook"], arrays)


def load_codebook(path: Path) -> Codebook:
    """Read what `save_codebook` wrote."""
    return codebook_from(*read_described(path, "codebook", "np"))
