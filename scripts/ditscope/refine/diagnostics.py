"""What a codebook, an encoder and a refiner are worth: separation, retrieval, collapse and interpolation error.

Pure functions of arrays. `codes` are pseudo-classes (samples,), embeddings are (samples, dimensions).
"""

from importlib.util import find_spec

import numpy as np
import polars as pl
from openTSNE import TSNE
from scipy.spatial.distance import cdist
from sklearn.metrics import davies_bouldin_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

from ditscope.refine.quantizers import occupancy as occupancy

FEW = 8  # samples that UMAP cannot lay out
MOST_SAMPLES = 2000  # of a pairwise metric; a larger set is thinned evenly


def separation(embedding: np.ndarray, codes: np.ndarray) -> dict[str, float | None]:
    """Mean distance within and between classes, their ratio, silhouette and Davies-Bouldin index.

    None where a metric is not defined: a single class, or no class with two samples.
    """
    rows = np.linspace(0, len(codes) - 1, min(len(codes), MOST_SAMPLES)).astype(int)
    x, labels = embedding[rows], codes[rows]
    distances = cdist(x, x)
    same = labels[:, None] == labels[None, :]
    apart = ~np.eye(len(x), dtype=bool)
    intra = float(distances[same & apart].mean()) if (same & apart).any() else None
    inter = float(distances[~same].mean()) if (~same).any() else None
    scores = 2 <= len(np.unique(labels)) < len(x)
    return {
        "intra_distance": intra,
        "inter_distance": inter,
        "intra_inter_ratio": intra / inter if intra is not None and inter else None,
        "silhouette": float(silhouette_score(x, labels)) if scores else None,
        "davies_bouldin": float(davies_bouldin_score(x, labels)) if scores else None,
    }


def nearest(embedding: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and Euclidean distances (samples, k) of each sample's nearest others."""
    k = min(k, len(embedding) - 1)
    distances, rows = NearestNeighbors(n_neighbors=k).fit(embedding).kneighbors()
    return rows, distances


def neighbour_table(
    keys: list[str], rows: np.ndarray, distances: np.ndarray, codes: np.ndarray, text: np.ndarray, keyframes: np.ndarray
) -> pl.DataFrame:
    """One row for each sample and rank: the neighbour, its class, and how far both agree.

    Agreement is the cosine of the texts' vectors and that of the mean keys, both less a centre of their own.
    """
    samples, k = rows.shape
    query, nearest = np.repeat(np.arange(samples), k), rows.ravel()
    names = np.array(keys)
    return pl.DataFrame(
        {
            "key": names[query],
            "rank": np.tile(np.arange(1, k + 1), samples),
            "neighbour_key": names[nearest],
            "distance": distances.ravel(),
            "code": codes[query],
            "neighbour_code": codes[nearest],
            "same_code": codes[query] == codes[nearest],
            "text_cosine": paired_cosine(text[query], text[nearest]),
            "keyframe_cosine": paired_cosine(keyframes[query], keyframes[nearest]),
        }
    )


def paired_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a` with the same row of `b`; 0 where either is zero."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), norms, out=np.zeros(len(a)), where=norms > 0)


def retrieval(neighbours: pl.DataFrame, codes: np.ndarray, text: np.ndarray, keyframes: np.ndarray) -> dict[str, float]:
    """Top-1 and top-k consistency by class and mean agreement, each beside what random neighbours would give."""
    counts = np.bincount(codes)
    n = len(codes)
    return {
        "k": float(neighbours["rank"].max()),
        "top1_consistency": float(neighbours.filter(pl.col("rank") == 1)["same_code"].mean()),
        "topk_consistency": float(neighbours["same_code"].mean()),
        "chance_consistency": float((counts * (counts - 1)).sum() / (n * (n - 1))),
        "text_agreement": float(neighbours["text_cosine"].mean()),
        "chance_text_agreement": mean_cosine(text),
        "keyframe_agreement": float(neighbours["keyframe_cosine"].mean()),
        "chance_keyframe_agreement": mean_cosine(keyframes),
    }


def mean_cosine(x: np.ndarray) -> float:
    """Mean cosine over all pairs of different rows."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    total = unit.sum(0)
    return float((total @ total - (unit**2).sum()) / (len(x) * (len(x) - 1)))


def squared_errors(prediction: np.ndarray, clean: np.ndarray, keys: np.ndarray) -> tuple[float, float]:
    """Mean squared error over all tokens and over missing ones; tokens (samples, tokens, size), keys bool."""
    errors = ((prediction - clean) ** 2).mean(-1)
    return float(errors.mean()), float(errors[~keys].mean())


def tsne(embedding: np.ndarray, seed: int) -> np.ndarray:
    """Two t-SNE coordinates (samples, 2) by openTSNE, on one thread so that they repeat."""
    perplexity = min(30.0, max((len(embedding) - 1) / 3, 1.0))
    return np.asarray(TSNE(perplexity=perplexity, random_state=seed, n_jobs=1).fit(embedding))


def umap(embedding: np.ndarray, seed: int) -> np.ndarray | None:
    """Two UMAP coordinates (samples, 2), of a seed alone; None where umap-learn is not installed or samples are few."""
    if find_spec("umap") is None or len(embedding) < FEW:
        return None
    from umap import UMAP

    neighbours = min(15, len(embedding) - 1)
    return np.asarray(UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(embedding), np.float64)
