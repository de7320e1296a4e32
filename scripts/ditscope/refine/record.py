"""The record of a refiner experiment: data, models, settings, results and the decision, written by the machine.

What changes from run to run (date, host, commit, device, times) stands in a record of its own beside it.
"""

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import ditscope
from ditscope.models.hardware import hardware_id
from ditscope.refine.settings import Refine

MOST_DOMINANT = 0.5  # share of the largest pseudo-class above which the codebook counts as collapsed
DIAGNOSTIC = ("top_k", "evaluated", "judge", "generator", "gallery")
WINDOW = 0.1  # share of the steps that "first" and "last" are averaged over
UNTOUCHED = 1e-9  # squared error of keys, in variances, up to which they count as left alone
# What a refiner must be better in than interpolation at every level, where its samples have it.
JUDGED = ("missing_error", "feature_distance", "psnr_db", "oracle_all", "oracle_frames", "warp_error", "in_walls")
RULE = (
    "keep where, on held-out samples and at every level, the 95 % interval over units of the paired gain over "
    f"interpolation lies above 0 in each of {', '.join(JUDGED)} that the samples have, keys are left alone where they "
    "are clamped, the autoencoder learns, a trained drifting field weakens at every radius, and no pseudo-class "
    f"has more than {MOST_DOMINANT:.0%} of the samples; else drop"
)


def experiment_record(
    name: str,
    about: Mapping[str, Any],
    shards: int,
    settings: Refine,
    diagnostics: pl.DataFrame,
    evaluation: pl.DataFrame,
    training: pl.DataFrame,
    processes: int,
) -> dict[str, Any]:
    """Everything that the logging contract asks for, times and machine left out.

    `about` is data.json, `settings` those in the refiner's file, the tables those of the stage.
    """
    out = about["samples"].get("held-out", 0)
    checks = {"judged on held-out samples": above(float(out), 0.0)}
    checks |= criteria(diagnostics, evaluation, training, settings)
    failed = [criterion for criterion, check in checks.items() if not check["passed"]]
    return {
        "schema_version": "1",
        "header": {"refiner": name, "ditscope": ditscope.__version__, "seed": settings.seed},
        "data": {
            "source": about["source"],
            "shards": shards,
            "samples": about["samples"],
            "left_out": about["left_out"],
            "shape": about["shape"],
            "adapter": about["adapter"],
        },
        "model": {
            "encoder": "latent_mae.safetensors",
            "encoder_frozen": True,
            "codes": settings.codes,
            "sampling_policy": policy(settings),
            "feature_sets": settings.features,
            "objective": settings.objective,
            "radii": settings.radii,
            "weighting": settings.weighting,
            "shared_scales": settings.shared_scales,
            "values": "standardised by channel over the training split",
        },
        "runtime": {
            "batch": settings.classes_per_step * settings.generated_per_class * settings.grad_accum * processes,
            "steps": {"latent_mae": settings.mae_steps, "refiner": settings.steps},
            "optimizer": settings.optimizer,
            "processes": processes,
        },
        "settings": {k: v for k, v in asdict(without_diagnostics(settings)).items() if k != "refiners"},
        "results": {
            "rule": RULE,
            "held_out": held_out(evaluation),
            "criteria": checks,
            "decision": "drop" if failed else "keep",
            "why": f"failed: {', '.join(failed)}" if failed else "all criteria passed",
        },
    }


def without_diagnostics(settings: Refine) -> Refine:
    """The settings less those of the diagnostics, which a refiner's file need not have: these at their defaults."""
    default = Refine()
    return replace(settings, **{name: getattr(default, name) for name in DIAGNOSTIC})


def policy(settings: Refine) -> dict[str, str]:
    """How samples of a batch are drawn, in words."""
    if settings.objective == "paired":
        return {"samples": "epochs of the training split, each in an order of its own"}
    return {
        "classes": "balanced, without replacement",
        "positives": f"{settings.positives} of the class, without replacement while it lasts; a sample's own source "
        "is held out of its targets",
        "negatives": f"{settings.generated_per_class} generated of the class, itself masked; no queue",
        "unconditional": f"{settings.unconditional} of any class, shared by the classes of a batch",
    }


def held_out(evaluation: pl.DataFrame) -> dict[str, Any]:
    """How many samples the refiner was judged on, and what to think of that number."""
    samples, units = evaluation["samples"][0], evaluation["units"][0]
    few = "no intervals below 8 units" if units < 8 else "intervals by Student's t, of KID by the jackknife"
    return {"samples": samples, "units": units, "note": f"{few}; FID is left out below 2,048 samples"}


def criteria(
    diagnostics: pl.DataFrame, evaluation: pl.DataFrame, training: pl.DataFrame, settings: Refine
) -> dict[str, dict[str, Any]]:
    """What must hold for an experiment to be kept: each with its value, its bound and whether it passed."""
    checks: dict[str, dict[str, Any]] = {}
    refined = evaluation.filter(method="refined")
    for metric in JUDGED:
        for level, low in refined.filter(metric=metric).select("level", "gain_low").iter_rows():
            checks[f"{metric} gains at level {level}"] = above(low, 0.0)
    if settings.clamp_keys:
        for level, error in refined.filter(metric="key_error").select("level", "value").iter_rows():
            checks[f"keys untouched at level {level}"] = below(error, UNTOUCHED)
    if training.filter(network="latent_mae").height:
        checks["latent_mae learns"] = below(*reversed(ends(training, "latent_mae", "loss")))
    if settings.objective != "paired":
        for radius in settings.radii:
            first, last = ends(training, "refiner", f"field_strength_R{radius:g}")
            checks[f"drifting field weakens at R={radius:g}"] = below(last, first)
    share = diagnostics.filter(group="occupancy", metric="max_class_share")["value"][0]
    return checks | {"no class dominates": below(share, MOST_DOMINANT)}


def below(value: float | None, bound: float | None) -> dict[str, Any]:
    """A criterion that asks for less than a bound."""
    return {"value": value, "must_be_below": bound, "passed": value is not None and bound is not None and value < bound}


def above(value: float | None, bound: float) -> dict[str, Any]:
    """A criterion that asks for more than a bound; no value (too few units for an interval) does not pass."""
    return {"value": value, "must_be_above": bound, "passed": value is not None and value > bound}


def ends(training: pl.DataFrame, network: str, metric: str) -> tuple[float | None, float | None]:
    """Mean of a metric over the first and over the last tenth of its steps."""
    curve = training.filter((pl.col("network") == network) & (pl.col("metric") == metric)).sort("step")["value"]
    window = max(int(len(curve) * WINDOW), 1)
    return curve.head(window).mean(), curve.tail(window).mean()


# Date, place and cost -----------------------------------------------------------------------------------------------


def timing_record(name: str, timing: pl.DataFrame, batch: int) -> dict[str, Any]:
    """When, where and from which code the record was made, and what the training cost; `batch` samples per step."""
    steps = timing.filter(network="refiner")["seconds"]
    seconds = float(steps.median() or 0.0)
    known = [column for column in ("device", "peak_memory_bytes") if column in timing.columns]
    return {
        "schema_version": "1",
        "refiner": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "command": shlex.join([Path(sys.argv[0]).name, *(relative(word) for word in sys.argv[1:])]),
        "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "judged_on": hardware_id(),
        "training": {column: timing[column][-1] for column in known}
        | {
            "step_seconds_median": seconds,
            "samples_per_second": batch / seconds if seconds else None,
            "seconds": float(np.sum(timing["seconds"].to_numpy())),
        },
    }


def relative(word: str) -> str:
    """A word of the command line, a path as it is below the working folder: what tells of the machine is left out."""
    return word.removeprefix(f"{Path.cwd()}/")


def git(*arguments: str) -> str:
    """What git says of the folder that this library is in; empty where it is no checkout."""
    try:
        told = subprocess.run(
            ["git", "-C", Path(__file__).parent, *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()
