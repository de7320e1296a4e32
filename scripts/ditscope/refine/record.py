"""The record of a refiner experiment: data, models, settings, results and the decision, written by the machine."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

import ditscope
from ditscope.refine.latents import LatentSet
from ditscope.refine.processes import world_size
from ditscope.refine.settings import Refine

MOST_DOMINANT = 0.5  # share of the largest pseudo-class above which the codebook counts as collapsed
WINDOW = 0.1  # share of the steps that "first" and "last" are averaged over


def experiment_record(
    model: str, images: list[Path], latents: LatentSet, settings: Refine, rows: list[tuple], training: pl.DataFrame
) -> dict[str, Any]:
    """Everything that the logging contract of the experiment asks for, times and machine left out."""
    values = {(group, metric): value for group, metric, value in rows}
    checks = criteria(values, training, settings)
    failed = [name for name, check in checks.items() if not check["passed"]]
    return {
        "schema_version": "1",
        "header": {"model": model, "ditscope": ditscope.__version__, "seed": settings.seed},
        "data": {
            "pattern": [str(Path(*path.parts[-3:])) for path in images],
            "shards": len(images),
            "samples": len(latents),
            "latent_shape": list(latents.values.shape[1:]),
        },
        "model": {
            "encoder": "latent_mae.safetensors",
            "encoder_frozen": True,
            "quantizer": "k-means on TF-IDF of the prompt and the mean anchor patch",
            "codes": settings.codes,
            "sampling_policy": {
                "classes": "balanced, without replacement",
                "positives": f"{settings.positives} of the class, without replacement while it lasts; "
                "a sample's own source is held out of its targets",
                "negatives": f"{settings.generated_per_class} generated of the class, itself masked; no queue",
                "unconditional": f"{settings.unconditional} of any class, shared by the classes of a batch",
            },
            "feature_sets": settings.features,
            "objective": settings.objective,
            "radii": settings.radii,
            "weighting": settings.weighting,
            "normalisation": "one distance scale a feature, one field scale a feature and radius",
            "latents": "standardised by channel over the set",
        },
        "runtime": {
            "batch": settings.classes_per_step * settings.generated_per_class * settings.grad_accum * world_size(),
            "steps": {"latent_mae": settings.mae_steps, "refiner": settings.steps},
            "optimizer": settings.optimizer,
        },
        "settings": {name: value for name, value in asdict(settings).items() if name != "refiners"},
        "results": {
            "criteria": checks,
            "decision": "drop" if failed else "keep",
            "why": f"failed: {', '.join(failed)}" if failed else "all criteria passed",
        },
    }


def criteria(values: dict[tuple, Any], training: pl.DataFrame, settings: Refine) -> dict[str, dict[str, Any]]:
    """What must hold for an experiment to be kept: each with its value, its bound and whether it passed."""
    hardest = f"level {settings.levels}"
    mae_first, mae_last = ends(training, "latent_mae", "loss")
    bounds: dict[str, tuple[float | None, float | None]] = {"latent_mae_learns": (mae_last, mae_first)}
    if settings.objective != "paired":
        first, last = ends(training, "refiner", f"field_strength_R{settings.radii[-1]:g}")
        bounds["drifting_field_weakens"] = (last, first)
    bounds |= {
        "refined_nearer_than_interpolated": (
            values[hardest, "mse_refined_missing"],
            values[hardest, "mse_corrupted_missing"],
        ),
        "classes_separate": (values["separation latent_mae", "intra_inter_ratio"], 1.0),
        "retrieval_above_chance": (
            values["retrieval latent_mae", "chance_consistency"],
            values["retrieval latent_mae", "topk_consistency"],
        ),
        "no_class_dominates": (values["occupancy", "max_class_share"], MOST_DOMINANT),
    }
    return {
        name: {
            "value": value,
            "must_be_below": bound,
            "passed": value is not None and bound is not None and value < bound,
        }
        for name, (value, bound) in bounds.items()
    }


def ends(training: pl.DataFrame, network: str, metric: str) -> tuple[float | None, float | None]:
    """Mean of a metric over the first and over the last tenth of its steps."""
    curve = training.filter((pl.col("network") == network) & (pl.col("metric") == metric)).sort("step")["value"]
    window = max(int(len(curve) * WINDOW), 1)
    return curve.head(window).mean(), curve.tail(window).mean()
