"""Latency and memory of one batch size: warm-up runs, counters reset, timed runs."""

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ditscope.benchmark.memory import judged_peak, peaks, reset_peaks
from ditscope.benchmark.quiet import noisiness, spread_of, verdict, visible_gpu, watching
from ditscope.benchmark.run_tables import PARTS
from ditscope.core.errors import first_line
from ditscope.core.intervals import mean_interval
from ditscope.models.loading import Generator
from ditscope.models.requests import requests
from ditscope.models.sampling import decode, patched, sample

log = logging.getLogger(__name__)


def timed(generator: Generator, rows: list[dict], repeats: int, warmup: int, until_quiet: int = 0) -> dict[str, Any]:
    """Latency and steady memory of one batch: warm-up, reset, timed runs; a row with the reason if it fails.

    A noisy measurement is repeated up to `until_quiet` times, and the quietest is kept.
    """
    try:
        began = time.perf_counter()
        for _ in range(warmup):
            run_once(generator, rows)
        warmed = time.perf_counter() - began
        attempts = [measured(generator, rows, repeats)]
        while attempts[-1]["verdict"] == "noisy" and len(attempts) <= until_quiet:
            log.info("batch %d: noisy (%s), measured again", len(rows), attempts[-1]["noisy_because"])
            attempts.append(measured(generator, rows, repeats))
    except Exception as error:  # out of memory, a missing kernel, a failed compilation: the other batches go on
        log.exception("batch %d failed", len(rows))
        return {"reason": first_line(error)}
    return min(attempts, key=noisiness) | {"warmup_seconds": warmed, "measurements": len(attempts), "reason": ""}


def measured(generator: Generator, rows: list[dict], repeats: int) -> dict[str, Any]:
    """Latencies, memory peaks and the machine's load of `repeats` runs, with the verdict on how quiet it was."""
    reset_peaks()
    with watching(visible_gpu() if generator.device.type == "cuda" else "") as seen:
        parts = np.array([run_once(generator, rows) for _ in range(repeats)]) * 1000  # (repeats, parts) ms
    whole = parts.sum(axis=1)
    low, median, high = np.quantile(whole, (0.1, 0.5, 0.9))
    mean = mean_interval(whole, positive=True)
    spread = spread_of(whole)
    peak, (judged, covered) = peaks(), judged_peak(generator.computes_on)
    noise, why = verdict(spread["latency_relative_iqr"], seen["others_share"], seen.get("gpu_throttling"))
    return {
        "repeats": repeats,
        "latency_median_ms": median,
        "latency_p10_ms": low,
        "latency_p90_ms": high,
        "latency_per_image_ms": median / len(rows),
        **{f"{part}_median_ms": value for part, value in zip(PARTS, np.median(parts, axis=0), strict=True)},
        "latency_mean_ms": mean.mean,
        "latency_mean_low_ms": mean.low,
        "latency_mean_high_ms": mean.high,
        "latencies_ms": whole.tolist(),
        **spread,
        **seen,
        "verdict": noise,
        "noisy_because": why,
        **{f"steady_peak_{key}": value for key, value in peak.items()},
        "steady_peak_bytes": peak[judged],
        "peak_covers": covered,
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
