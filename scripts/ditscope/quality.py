"""Quality of benchmarked images against the eager base: same prompts, seeds and starting noise, all schemes at once."""

import io
import logging
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from ditscope.benchmark_table import IDENTITY, QUALITY_TYPES
from ditscope.config import unknown
from ditscope.errors import InputError
from ditscope.features import feature_extractor, features_of
from ditscope.metrics import (
    FID_LEAST_IMAGES,
    cosines,
    fid,
    kid,
    lpips,
    lpips_unavailable,
    mean_interval,
    psnr,
    quality_losses,
    ssim,
)
from ditscope.settings import Benchmark, Embedder
from ditscope.shards import read_tar
from ditscope.tables import read_table, write_table

log = logging.getLogger(__name__)

PAIRED = ("psnr_db", "ssim", "feature_cosine", "quality_loss", "lpips")
OF_SETS = ("fid", "kid")
MUST_MATCH = ("steps", "guidance", "width", "height", "model")


def quality(
    runs: list[Path],
    out: Path,
    embedders: dict[str, Embedder],
    settings: Benchmark = Benchmark(),
    cache: Path | None = None,
) -> None:
    """Judge the images of benchmark runs against those of the base scheme in eager mode, which must be among them.

    `runs` are tables `benchmark.run` of one model, each with its images in a tar of the same name. Leaves the table
    `benchmark.quality`, a row a run and metric. Raises InputError where a run has other settings than the base.
    """
    tables = [(path, read_table(path, "benchmark.run").row(0, named=True)) for path in runs]
    base = next((path for path, run in tables if run["kind"] == "base" and run["compile"] == "eager"), None)
    if base is None:
        raise InputError(
            f"{runs[0].parent}: no run of the base scheme in eager mode to compare with; benchmark it first"
        )
    if settings.features not in embedders:
        raise InputError(unknown("benchmark.features", settings.features, embedders, "in the config's `embedders`"))
    key, features = feature_extractor(settings.features, embedders[settings.features])
    reference = read_images(base)
    rows: list[dict] = []
    for path, run in tables:
        found = read_images(path)
        reason = run["reason"] or ("the base left no images to compare with" if not reference else "")
        if not reason:
            check_match(path, found, base, reference)
            expected, mine = ([images[pair]["png"] for pair in sorted(reference)] for images in (reference, found))
            vectors = [features_of(pngs, key, features, cache) for pngs in (expected, mine)]
            measured = compare(expected, mine, *vectors)
        else:
            measured = [row(metric, reason=reason) for metric in (*PAIRED, *OF_SETS)]
        rows += [{name: run[name] for name in IDENTITY} | m for m in measured]
        log.info("%s: %s", path.stem, reason or ", ".join(f"{m['metric']} {m['value']}" for m in measured))
    write_table(pl.DataFrame(rows, schema=QUALITY_TYPES), out, "benchmark.quality")


def read_images(table: Path) -> dict[tuple[str, int], dict]:
    """The WebDataset samples beside a run's table by (prompt_id, seed)."""
    samples = read_tar(table.with_suffix(".tar"))
    return {(s["json"]["prompt_id"], s["json"]["seed"]): s for s in samples}


def check_match(path: Path, found: dict, base: Path, reference: dict) -> None:
    """Refuse images that differ from the reference in more than the scheme: metrics would measure that instead."""
    for key in MUST_MATCH:
        mine, theirs = ({s["json"][key] for s in images.values()} for images in (found, reference))
        if mine != theirs:
            raise InputError(
                f"{path.with_suffix('.tar')}: {key} {listed(mine)}, but the reference {base.with_suffix('.tar')} "
                f"has {listed(theirs)}; make both with the same settings"
            )
    if found.keys() != reference.keys():
        raise InputError(
            f"{path.with_suffix('.tar')}: its {len(found)} (prompt, seed) pairs are not the {len(reference)} of the "
            f"reference {base.with_suffix('.tar')}; make both from the same prompts"
        )


def listed(values: set) -> str:
    """Values as one short text."""
    return ", ".join(map(str, sorted(values)))


def compare(
    reference: list[bytes], images: list[bytes], reference_features: np.ndarray, features: np.ndarray
) -> list[dict]:
    """Every metric of PNG images against the reference images at the same positions.

    Feature sets are (n, d). Rows: metric, value (the mean of paired metrics), 95 % bootstrap interval, n, reason.
    """
    pairs = [(decoded(a), decoded(b)) for a, b in zip(reference, images, strict=True)]
    cosine = cosines(reference_features, features)
    similarity = np.array([ssim(a, b) for a, b in pairs])
    values = {
        "psnr_db": np.array([psnr(a, b) for a, b in pairs]),
        "ssim": similarity,
        "feature_cosine": cosine,
        "quality_loss": quality_losses(cosine, similarity),
    }
    missing = lpips_unavailable()
    if not missing:
        values["lpips"] = np.array([lpips(a, b) for a, b in pairs])
    rows = [row(metric, float(v.mean()), *mean_interval(v), n=len(v)) for metric, v in values.items()]
    if missing:
        rows.append(row("lpips", n=len(pairs), reason=missing))
    for metric, distance in (("fid", fid), ("kid", kid)):
        few = "" if len(pairs) > 1 else f"{metric} needs at least two images"
        rows.append(row(metric, None if few else distance(reference_features, features), n=len(pairs), reason=few))
    return rows


def row(
    metric: str,
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
    n: int = 0,
    reason: str = "",
) -> dict:
    """One row of the table `benchmark.quality`, less the run's identity; `small_n` marks an FID that is no headline."""
    low, high = (None if x is None or np.isnan(x) else x for x in (low, high))
    small = metric == "fid" and n < FID_LEAST_IMAGES
    return {"metric": metric, "value": value, "low": low, "high": high, "n": n, "small_n": small, "reason": reason}


def decoded(png: bytes) -> np.ndarray:
    """A PNG as (height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
