"""Quantizers of condition embeddings: mini-batch k-means, and a learned one (VQ). Nothing is ever samples x codes.

An embedding is read by rows, so that a set need not be in memory: `read(rows)` gives (rows, dimensions) float32, the
same for the same rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

Read = Callable[[np.ndarray], np.ndarray]
Arrays = dict[str, np.ndarray]

CHUNK = 4096  # samples that are compared with all codes at once
EPOCHS = 10  # passes of mini-batch k-means over the samples
ROUNDS = 5  # in which codes that no sample has are put elsewhere
# Fallback to fewer codes where occupancy or collapse diagnostics are poor.
MOST_SPARSE = 0.25  # share of the codes that have one sample or none
MOST_DOMINANT = 0.5  # share of the samples that have one code
# VQ
BATCH = 1024
HIDDEN, SIZE = 256, 64  # widths of its encoder and of what is quantized
DECAY = 0.99  # of the moving averages that codes are (van den Oord et al. 2017, appendix A.1)
COMMITMENT = 0.25
DEAD = 0.01  # of the mean count, below which a code starts again at a sample of the batch


def chunks(rows: np.ndarray, size: int = CHUNK) -> Iterator[np.ndarray]:
    """Rows in turn, `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def nearest_code(centroids: np.ndarray, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code of the nearest centroid of each embedding, and the Euclidean distance to it (float64)."""
    squares = (centroids.astype(np.float64) ** 2).sum(1)
    codes, distances = [], []
    for rows in chunks(np.arange(len(embedding))):
        x = embedding[rows].astype(np.float64)
        codes.append((squares - 2 * x @ centroids.T).argmin(1))
        distances.append(np.linalg.norm(x - centroids[codes[-1]], axis=1))
    return np.concatenate(codes), np.concatenate(distances)


def assigned(centroids: np.ndarray, read: Read, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`nearest_code` of many rows, read chunk by chunk."""
    parts = [nearest_code(centroids, read(part)) for part in chunks(rows)]
    return np.concatenate([codes for codes, _ in parts]), np.concatenate([distances for _, distances in parts])


def occupied(centroids: np.ndarray, read: Read, rows: np.ndarray) -> np.ndarray:
    """The centroids, those that no row is nearest to put on the rows that are farthest from theirs.

    Rounds end where all have rows, or no row lies off its centroid (fewer distinct rows than codes).
    """
    centroids = centroids.copy()
    for _ in range(ROUNDS):
        codes, distances = assigned(centroids, read, rows)
        dead = np.flatnonzero(np.bincount(codes, minlength=len(centroids)) == 0)
        farthest = np.argsort(-distances, kind="stable")[: len(dead)]
        farthest = farthest[distances[farthest] > 0]
        if not len(farthest):
            break
        centroids[dead[: len(farthest)]] = read(rows[farthest])
    return centroids


# k-means ------------------------------------------------------------------------------------------------------------


def kmeans(read: Read, rows: np.ndarray, codes: int, seed: int, steps: int) -> Arrays:
    """Centroids by mini-batch k-means (Sculley 2010) over shuffled chunks; seldom used ones start again on the way."""
    rng = np.random.default_rng(seed)
    means = MiniBatchKMeans(codes, random_state=seed, n_init=1, init="k-means++")
    size = max(CHUNK, 4 * codes)
    for _ in range(EPOCHS):
        for part in chunks(rng.permutation(rows), size):
            if len(part) >= codes:  # the first chunk chooses the centroids to start from
                means.partial_fit(np.ascontiguousarray(read(np.sort(part))))
    return {"centroids": occupied(means.cluster_centers_.astype(np.float32), read, rows)}


# VQ -----------------------------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """An autoencoder of condition embeddings, whose middle is replaced by the nearest code."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(dimensions, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, SIZE))
        self.decoder = nn.Sequential(nn.Linear(SIZE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dimensions))


@dataclass
class MovingCodes:
    """Codes as moving averages of what was assigned to them."""

    counts: Tensor  # (codes,)
    sums: Tensor  # (codes, size)

    @property
    def centroids(self) -> Tensor:
        """(codes, size)."""
        return self.sums / self.counts[:, None]

    def update(self, z: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Take a batch (batch, size) into the averages; codes that hardly any sample has start at one of the batch."""
        hot = F.one_hot(codes, len(self.counts)).to(z)
        self.counts.lerp_(hot.sum(0), 1 - DECAY)
        self.sums.lerp_(hot.T @ z, 1 - DECAY)
        dead = self.counts < DEAD * self.counts.mean()
        chosen = torch.randint(len(z), (int(dead.sum()),), generator=generator)
        self.counts[dead] = self.counts.mean()
        self.sums[dead] = z[chosen] * self.counts.mean()


def vq(read: Read, rows: np.ndarray, codes: int, seed: int, steps: int) -> Arrays:
    """A learned code (van den Oord et al. 2017): encoder and codes that an embedding is best rebuilt from.

    Returns centroids (codes, 64) and the encoder's weights, which `encoded` applies.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    batch = min(max(BATCH, 2 * codes), len(rows))

    def draw() -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(read(np.sort(rng.choice(rows, batch, replace=False)))))

    x = draw()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Bottleneck(x.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    with torch.no_grad():
        starts = network.encoder(x)[torch.randperm(batch, generator=generator)[:codes]]
    moving = MovingCodes(torch.ones(len(starts)), starts.clone())
    for _ in range(steps):
        x = draw()
        z = network.encoder(x)
        with torch.no_grad():
            chosen = torch.cdist(z, moving.centroids).argmin(1)
            quantized = moving.centroids[chosen]
        rebuilt = network.decoder(z + (quantized - z).detach())
        loss = F.mse_loss(rebuilt, x) + COMMITMENT * F.mse_loss(z, quantized)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moving.update(z.detach(), chosen, generator)
    arrays = {f"encoder.{name}": value.numpy() for name, value in network.encoder.state_dict().items()}
    centroids = moving.centroids.numpy()
    return arrays | {"centroids": occupied(centroids, lambda part: encoded(arrays, read(part)), rows)}


def encoded(arrays: Arrays, embedding: np.ndarray) -> np.ndarray:
    """What is quantized: the embedding itself, or what VQ's encoder makes of it."""
    if "encoder.0.weight" not in arrays:
        return embedding
    hidden = np.maximum(embedding @ arrays["encoder.0.weight"].T + arrays["encoder.0.bias"], 0)
    return hidden @ arrays["encoder.2.weight"].T + arrays["encoder.2.bias"]


QUANTIZERS: dict[str, Callable[[Read, np.ndarray, int, int, int], Arrays]] = {"kmeans": kmeans, "vq": vq}


# How many codes -----------------------------------------------------------------------------------------------------


def occupancy(codes: np.ndarray, classes: int) -> dict[str, float]:
    """How samples spread over the classes; entropy in nats, and over ln(classes) as `normalised_entropy`."""
    counts = np.bincount(codes, minlength=classes)
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log(share)).sum())
    return {
        "classes": float(classes),
        "non_empty_classes": float((counts > 0).sum()),
        "mean": float(counts.mean()),
        "median": float(np.median(counts)),
        "p10": float(np.percentile(counts, 10)),
        "p90": float(np.percentile(counts, 90)),
        "singleton_or_empty_fraction": float((counts <= 1).mean()),
        "entropy": entropy,
        "normalised_entropy": entropy / np.log(classes) if classes > 1 else 1.0,
        "max_class_share": float(share.max()),
    }


def poor(numbers: dict[str, float]) -> str:
    """Why a codebook is too large for its samples; empty where it is not."""
    if (share := numbers["singleton_or_empty_fraction"]) > MOST_SPARSE:
        return f"{share:.2f} of the codes have one sample or none, more than {MOST_SPARSE}"
    if (share := numbers["max_class_share"]) > MOST_DOMINANT:
        return f"one code has {share:.2f} of the samples, more than {MOST_DOMINANT}"
    return ""


def quantize(
    read: Read, rows: np.ndarray, kind: str, codes: int, fallback: int, seed: int, steps: int
) -> tuple[Arrays, list[dict[str, Any]]]:
    """A codebook of `codes` codes or, where its occupancy is poor, of `fallback` (0: never), and what was tried.

    Each trial has its codes, its occupancy, whether it was kept, and why not. `steps` are those of `vq`.
    """
    tried: list[dict[str, Any]] = []
    sizes = [codes, fallback] if 0 < fallback < codes else [codes]
    for number in sizes:
        arrays = QUANTIZERS[kind](read, rows, number, seed, steps)
        found = quantized(arrays, read, rows)[0]
        numbers = occupancy(found, number)
        why = poor(numbers) if number != sizes[-1] else ""
        tried.append({"codes": number, "occupancy": numbers, "kept": not why, "why": why})
        if not why:
            break
    return arrays, tried


def quantized(arrays: Arrays, read: Read, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code of each row and the distance to its centroid, in the space that is quantized."""
    return assigned(arrays["centroids"], lambda part: encoded(arrays, read(part)), rows)
