"""Adaptive sensitivity: which layers need more samples before a bit plan can be trusted.

All layers are measured on a few samples of every bucket. Plans made from bootstrap resamples of these say which layers
always get the same bits: those are settled, the others are measured on more samples, and so on until none is left or
the samples are used up. The plans here are the Lagrangian relaxation of the integer program of ditscope.plan.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

from ditscope.calibration_set import Reference
from ditscope.plan import nominal_bytes
from ditscope.sensitivity_table import BUCKETS, resamples
from ditscope.settings import Sensitivity

FIRST = 3  # samples of each bucket in the first round; the number doubles from round to round
RESAMPLES = 200  # plans of a round; a layer is settled when all of them give it the same bits


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
) -> tuple[set[str], list[Reference]]:
    """The layers that the next round measures, and on which samples; no layers where all are settled.

    `measured` are the scores of the rounds before (None before the first), `layers` what the table says of them.
    """
    described = {layer["layer"]: layer for layer in layers}
    orders = [sampling_order(buckets, bucket) for bucket in BUCKETS]
    if measured is None:
        return set(described), [sample for order in orders for sample in order[:FIRST]]
    done = len(measured.select("bucket", "image", "step_index").filter(pl.col("bucket") == BUCKETS[0]).unique())
    chosen = [sample for order in orders for sample in order[done : 2 * done]]
    # Settled layers stay out: only those that the last round measured have all samples so far.
    counts = measured.group_by("layer").agg(pl.struct("bucket", "image", "step_index").n_unique().alias("samples"))
    open_layers = set(counts.filter(pl.col("samples") == pl.col("samples").max())["layer"])
    if not chosen:
        return set(), []
    return open_layers - settled(measured, described, settings), chosen


def settled(measured: pl.DataFrame, described: dict[str, dict[str, Any]], settings: Sensitivity) -> set[str]:
    """The linear layers that get the same bits in every resampled plan, and the layers that no plan covers."""
    planned = [name for name, layer in described.items() if layer["module"] == "linear"]
    bits = sorted(settings.bits)
    costs = resampled_costs(measured.filter(pl.col("layer").is_in(planned)), planned, bits)
    size = np.array(
        [[nominal_bytes(described[n]["parameters"], b, described[n]["shared_weights"]) for b in bits] for n in planned]
    )
    steady = np.ones(len(planned), bool)
    for width in settings.settle_bits:
        limit = int(size[:, bits.index(width)].sum())
        plans = np.array([relaxed_plan(cost, size, limit) for cost in costs])
        most = np.array([np.bincount(column).max() for column in plans.T])
        steady &= most == len(plans)
    return {name for name, calm in zip(planned, steady, strict=True) if calm} | set(described) - set(planned)


def resampled_costs(measured: pl.DataFrame, names: list[str], bits: list[int]) -> np.ndarray:
    """Costs of the integer program (resamples, layers, bits) from bootstrap resamples of the samples of each bucket.

    Layers share a resample's draws, and bit widths its samples, so that what is hard for all does not count as doubt.
    """
    total = np.zeros((RESAMPLES, len(names), len(bits)))
    cells = measured.sort("step_index", "image").group_by("layer", "bucket", "bits").agg(pl.col("relative_l2"))
    for row in cells.iter_rows(named=True):
        scores = np.array(row["relative_l2"])
        means = scores[resamples(len(scores))[:RESAMPLES]].mean(1)
        total[:, names.index(row["layer"]), bits.index(row["bits"])] += means**2
    return total / len(BUCKETS)


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
