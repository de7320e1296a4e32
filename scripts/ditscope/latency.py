"""Latency and memory of one batch size: warm-up runs, counters reset, timed runs."""

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch

from ditscope.generate import requests
from ditscope.memory import peaks, reset_peaks
from ditscope.models import Generator
from ditscope.sampling import decode, patched, sample

log = logging.getLogger(__name__)

PARTS = ("encode", "denoise", "decode")
MEMORY = ("rss_bytes", "allocated_bytes", "reserved_bytes", "mlx_bytes")
TIMING_TYPES: dict[str, Any] = {
    "batch": pl.Int64,
    "repeats": pl.Int64,
    "latency_median_ms": pl.Float64,
    "latency_p10_ms": pl.Float64,
    "latency_p90_ms": pl.Float64,
    "latency_per_image_ms": pl.Float64,
    **{f"{part}_median_ms": pl.Float64 for part in PARTS},
    "latencies_ms": pl.List(pl.Float64),
    "warmup_seconds": pl.Float64,
    **{f"steady_peak_{key}": pl.Int64 for key in MEMORY},
    "reason": pl.String,
    "load_seconds": pl.Float64,
    "prepare_seconds": pl.Float64,
    **{f"load_peak_{key}": pl.Int64 for key in MEMORY},
}


def timed(generator: Generator, rows: list[dict], repeats: int, warmup: int) -> dict[str, Any]:
    """Latency and steady memory of one batch: warm-up, reset, timed runs; a row with the reason if it fails."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the batch size before reserved is no part of this one's peak
    try:
        began = time.perf_counter()
        for _ in range(warmup):
            run_once(generator, rows)
        warmed = time.perf_counter() - began
        reset_peaks()
        parts = np.array([run_once(generator, rows) for _ in range(repeats)]) * 1000  # (repeats, parts) ms
    except Exception as error:  # out of memory, a missing kernel, a failed compilation: the other batches go on
        log.exception("batch %d failed", len(rows))
        return {"reason": first_line(error)}
    low, median, high = np.quantile(parts.sum(axis=1), (0.1, 0.5, 0.9))
    return {
        "repeats": repeats,
        "latency_median_ms": median,
        "latency_p10_ms": low,
        "latency_p90_ms": high,
        "latency_per_image_ms": median / len(rows),
        **{f"{part}_median_ms": value for part, value in zip(PARTS, np.median(parts, axis=0), strict=True)},
        "latencies_ms": parts.sum(axis=1).tolist(),
        "warmup_seconds": warmed,
        **{f"steady_peak_{key}": value for key, value in peaks().items()},
        "reason": "",
    }


def run_once(generator: Generator, rows: list[dict]) -> tuple[float, float, float]:
    """Seconds to encode the prompts, to denoise and to decode one batch, each until the device is done."""
    device, encode, spent = generator.device, generator.pipe.encode_prompt, [0.0]

    def encode_prompt(*args: Any, **options: Any) -> Any:
        began = now(device)
        encoded = encode(*args, **options)
        spent[0] += now(device) - began
        return encoded

    began = now(device)
    with patched(generator.pipe, encode_prompt=encode_prompt):
        latents = sample(replace(generator, encoded={}), *requests(rows))  # of a batch that was never encoded before
    sampled = now(device)
    decode(generator, latents)
    return spent[0], sampled - began - spent[0], now(device) - sampled


def now(device: torch.device) -> float:
    """The clock in seconds, after all work that was given to `device`."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def first_line(error: Exception) -> str:
    """What went wrong, in one line of at most 300 characters."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"
