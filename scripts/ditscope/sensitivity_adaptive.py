"""Adaptive sensitivity: which cells (layer x bit width) need more samples before a bit plan can be trusted.

All cells are measured on a few samples of every bucket. Plans made from bootstrap resamples of these say which layers
always get the same bits: those are settled. Of the others only the bit widths that some plan chooses are in doubt; they
are measured on twice as many samples, and so on until none is in doubt or the samples are used up, where a cell is as
exact mode has it. The plans here are the Lagrangian relaxation of the integer program of ditscope.plan.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import polars as pl

from ditscope.calibration_set import Reference
from ditscope.plan import nominal_bytes
from ditscope.sensitivity_table import BUCKETS
from ditscope.settings import Sensitivity

FIRST = 2  # samples of each bucket in the first round; a cell in doubt doubles them
RESAMPLES = 200  # plans of a round; a layer is settled when all of them give it the same bits
Cells = dict[str, list[int]]  # bit widths by layer


def sampling_order(buckets: dict[Reference, str], bucket: str) -> list[Reference]:
    """The samples of a bucket in an order whose every beginning is spread over its steps and its images."""
    mine = {(s.step_index, s.image): s for s, name in buckets.items() if name == bucket}
    steps, images = sorted({step for step, _ in mine}), sorted({image for _, image in mine})
    turns = [(step, images[(turn + i) % len(images)]) for turn in range(len(images)) for i, step in enumerate(steps)]
    return [mine[key] for key in turns if key in mine]


def next_samples(
    measured: pl.DataFrame | None,
    layers: Iterable[dict[str, Any]],
    buckets: dict[Reference, str],
    settings: Sensitivity,
) -> list[tuple[Cells, list[Reference]]]:
    """What the next round measures: cells, and the samples they are measured on; nothing where all are settled.

    `measured` are the scores of the rounds before (None before the first), `layers` what the table says of them.
    """
    described = {layer["layer"]: layer for layer in layers}
    orders = [sampling_order(buckets, bucket) for bucket in BUCKETS]
    if measured is None:
        return [({name: list(settings.bits) for name in described}, [s for order in orders for s in order[:FIRST]])]
    sizes = Counter(buckets.values())
    largest, most = sizes.most_common(1)[0]
    done = measured.filter(bucket=largest).group_by("layer", "bits").len().rows_by_key(["layer", "bits"], unique=True)
    groups: dict[int, Cells] = {}
    for layer, bits in doubtful(measured, described, sizes, settings):
        count = done[layer, bits][0]
        if count < most:
            groups.setdefault(count, {}).setdefault(layer, []).append(bits)
    return [(groups[count], [s for order in orders for s in order[count : 2 * count]]) for count in sorted(groups)]


def doubtful(
    measured: pl.DataFrame, described: dict[str, dict[str, Any]], sizes: dict[str, int], settings: Sensitivity
) -> list[tuple[str, int]]:
    """The cells of linear layers, which alone are planned, that some resampled plans choose and others do not."""
    planned = [name for name, layer in described.items() if layer["module"] == "linear"]
    bits = sorted(settings.bits)
    costs = resampled_costs(measured.filter(pl.col("layer").is_in(planned)), planned, bits, sizes)
    size = np.array(
        [[nominal_bytes(described[n]["parameters"], b, described[n]["shared_weights"]) for b in bits] for n in planned]
    )
    doubt = np.zeros(size.shape, bool)
    for width in settings.settle_bits:
        limit = int(size[:, bits.index(width)].sum())
        plans = np.array([relaxed_plan(cost, size, limit) for cost in costs])
        share = (plans[:, :, None] == np.arange(len(bits))).mean(0)
        doubt |= (share > 0) & (share < 1)
    return [(planned[layer], bits[column]) for layer, column in np.argwhere(doubt)]


def resampled_costs(measured: pl.DataFrame, names: list[str], bits: list[int], sizes: dict[str, int]) -> np.ndarray:
    """Costs of the integer program (resamples, layers, bits) from bootstrap resamples of the samples of each bucket.

    Cells of equally many samples share a resample's draws, so that what is hard for all does not count as doubt.
    Deviations are scaled by sqrt(n / (n - 1)), which a resample of n samples lacks; a cell of all `sizes` samples of a
    bucket has none, because exact mode knows no more.
    """
    total = np.zeros((RESAMPLES, len(names), len(bits)))
    rows = {name: i for i, name in enumerate(names)}
    cells = measured.sort("step_index", "image").group_by("layer", "bucket", "bits").agg(pl.col("relative_l2"))
    for row in cells.iter_rows(named=True):
        scores = np.array(row["relative_l2"])
        count, mean = len(scores), scores.mean()
        moved = 0.0
        if count < sizes[row["bucket"]]:
            moved = (weights(count) @ scores - mean) * np.sqrt(count / max(count - 1, 1))
        total[:, rows[row["layer"]], bits.index(row["bits"])] += np.maximum(mean + moved, 0) ** 2
    return total / len(BUCKETS)


@cache
def weights(count: int) -> np.ndarray:
    """How often each of `count` samples is drawn in a resample, over `count`: (RESAMPLES, count)."""
    return np.random.default_rng(count).multinomial(count, np.full(count, 1 / count), RESAMPLES) / count


def relaxed_plan(cost: np.ndarray, size: np.ndarray, limit: int) -> np.ndarray:
    """Bits (column index) of each layer that minimise cost + price x bytes, at the least price that keeps the limit."""
    rows = np.arange(len(cost))
    low, high = 0.0, 1.0
    while size[rows, (cost + high * size).argmin(1)].sum() > limit and high < 1e12:
        high *= 16
    chosen = (cost + high * size).argmin(1)
    for _ in range(60):
        middle = (low + high) / 2 if low else high / 16
        found = (cost + middle * size).argmin(1)
        if size[rows, found].sum() <= limit:
            high, chosen = middle, found
        else:
            low = middle
        if (low and high / low < 1 + 1e-6) or high < 1e-30:
            break
    return chosen
