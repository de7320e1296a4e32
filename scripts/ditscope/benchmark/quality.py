"""Quality of benchmarked images against the eager base: same prompts, seeds and starting noise, all schemes at once."""

import logging
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from ditscope.benchmark.features import Extractor, feature_extractor, features_of, text_rows, zero_shot_logits
from ditscope.benchmark.images import FLOOR, MADE_WITH, Images, check_batch, check_kid_subset, read_images
from ditscope.benchmark.run_tables import IDENTITY
from ditscope.benchmark.settings import Benchmark
from ditscope.benchmark.tables import NOISE_FLOOR, OF_SETS, OF_TEXT, PAIRED, QUALITY
from ditscope.core.errors import InputError
from ditscope.core.intervals import mean_interval
from ditscope.core.metrics import (
    FID_LEAST_IMAGES,
    NEIGHBOURHOOD,
    cosines,
    fid,
    inception_score,
    kid,
    lpips,
    lpips_unavailable,
    precision_recall,
    psnr,
    quality_losses,
    ssim,
)
from ditscope.core.picture_file import pixels
from ditscope.core.tables import read_table, write_table
from ditscope.models.embedders.registry import embedder_named
from ditscope.models.settings import Embedder

log = logging.getLogger(__name__)

LEAST_IMAGES = {"fid": 2, "kid": 2, "inception_score": 2, "precision": NEIGHBOURHOOD + 1, "recall": NEIGHBOURHOOD + 1}
BIASED = ("fid", "inception_score", "precision", "recall")  # by the number of images


def quality(
    runs: list[Path],
    out: Path,
    embedders: dict[str, Embedder],
    settings: Benchmark = Benchmark(),
    cache: Path | None = None,
) -> None:
    """Judge the images of benchmark runs against those of the base scheme in eager mode, which must be among them.

    `runs` are tables `benchmark.run` of one model, each with its images in a tar of the same name. Leaves the table
    `benchmark.quality`, a row per run and metric. Raises InputError, before any model loads, where a run has other
    settings than the base, or an image is damaged.
    """
    tables = [(path, read_table(path, "benchmark.run").row(0, named=True)) for path in runs]
    base = next((path for path, run in tables if run["kind"] == "base" and run["compile"] == "eager"), None)
    if base is None:
        raise InputError(
            f"{runs[0].parent}: no run of the base scheme in eager mode to compare with; benchmark it first"
        )
    extractors = {}
    for key, names in (("features", [settings.features]), ("cosines", settings.cosines)):
        for name in names:
            extractors[name] = feature_extractor(name, embedder_named(name, embedders, f"benchmark.{key}"))
    reference = read_images(base)
    if reference:
        check_kid_subset(settings, len(reference), base.with_suffix(".tar"))
    for path, run in tables:
        if reference and not missing_images(run):
            check_batch(dict(tables)[base], run.get("quality_batch"), base)
            check_match(path, read_images(path), base, reference)

    theirs = judged(reference, reference, extractors, settings, cache) if reference else None
    metrics = (*PAIRED, *(f"cosine_{name}" for name in settings.cosines), *OF_SETS)
    rows: list[dict] = []
    for path, run in tables:
        reason = missing_images(run)
        if theirs is None or reason:
            reason = reason or "the base left no images to compare with"
            measured = [row(metric, reason=reason) for metric in metrics]
        else:
            images = judged(read_images(path), reference, extractors, settings, cache)
            measured = compare(theirs, images, settings.kid_subset_size)
        rows += [{name: run[name] for name in IDENTITY} | m for m in measured]
        log_metrics(path.stem, measured)
        if path == base and theirs is not None and run.get("floor_batch"):
            again = {key: sample | {"png": sample[FLOOR]} for key, sample in reference.items()}
            floor = judged(again, reference, extractors, settings, cache)
            about = {"scheme": f"{run['scheme']}, batch {run['floor_batch']}", "kind": NOISE_FLOOR}
            identity = {name: run[name] for name in IDENTITY} | about
            rows += [identity | m for m in compare(theirs, floor, settings.kid_subset_size)]
    if reference and len(reference) < FID_LEAST_IMAGES:
        log.warning("%d images: fewer than %d, so no FID is a headline", len(reference), FID_LEAST_IMAGES)
    write_table(pl.DataFrame(rows, schema=QUALITY.schema()), out, QUALITY)


def missing_images(run: dict) -> str:
    """Why a run (row of `benchmark.run`) has no images to judge; empty where it has."""
    return run["reason"] or run.get("images_reason") or ""


def check_match(path: Path, made: Images, base: Path, reference: Images) -> None:
    """Refuse images that differ from the reference in more than the scheme: metrics would measure that instead."""
    for key in (*MADE_WITH, "model"):
        values, theirs = ({s["json"][key] for s in images.values()} for images in (made, reference))
        if values != theirs:
            raise InputError(
                f"{path.with_suffix('.tar')}: {key} {listed(values)}, but the reference {base.with_suffix('.tar')} "
                f"has {listed(theirs)}; make both with the same settings"
            )
    if made.keys() != reference.keys():
        raise InputError(
            f"{path.with_suffix('.tar')}: its {len(made)} (prompt, seed) pairs are not the {len(reference)} of the "
            f"reference {base.with_suffix('.tar')}; make both from the same prompts"
        )


def listed(values: set) -> str:
    """Values as one short text."""
    return ", ".join(map(str, sorted(values)))


def judged(
    images: Images, reference: Images, extractors: dict[str, Extractor], settings: Benchmark, cache: Path | None
) -> dict:
    """What the metrics read of a run's images, in the reference's order.

    `pngs`; `prompts`, a text each; `features` (n, d); `more`: those of each embedder of `cosines` by name; where the
    embedder has a text tower `alignment` (n,), the cosine of each image to its prompt, and `logits` (n, classes) of the
    zero-shot classes that the settings name, else None.
    """
    order = sorted(reference)
    pngs = [images[pair]["png"] for pair in order]
    extractor = extractors[settings.features]
    features = features_of(pngs, extractor, cache)
    more = {name: features_of(pngs, extractors[name], cache) for name in settings.cosines}
    alignment = logits = None
    prompts = [images[pair]["json"]["prompt"] for pair in order]
    if extractor.texts:
        distinct = list(dict.fromkeys(prompts))
        rows = text_rows(distinct, extractor, cache)
        alignment = cosines(rows[[distinct.index(prompt) for prompt in prompts]], features)
        if classes := class_texts(settings.classes):
            logits = zero_shot_logits(features, text_rows(classes, extractor, cache))
    seen = {"pngs": pngs, "prompts": prompts, "features": features, "more": more}
    return seen | {"alignment": alignment, "logits": logits}


def class_texts(patterns: Sequence[str]) -> list[str]:
    """Every text that patterns with alternatives stand for: `a {red,blue} {ring,star}` is four."""
    texts = []
    for pattern in patterns:
        parts = [part.split(",") if i % 2 else [part] for i, part in enumerate(re.split(r"\{([^{}]*)\}", pattern))]
        texts += ["".join(word.strip() if i % 2 else word for i, word in enumerate(p)) for p in product(*parts)]
    return texts


def compare(reference: dict, images: dict, kid_subset_size: int = 0) -> list[dict]:
    """Every metric of a run's images against the reference's at the same positions; both as `judged` gives them.

    Rows: metric, value (of paired metrics the mean over prompts), its 95 % interval, n, n_prompts, small_n, reason.
    Pictures of one prompt from several seeds are one unit (see `mean_interval`).
    """
    paired, reasons = pair_values(reference, images)
    n, prompts = len(images["pngs"]), len(set(images["prompts"]))
    rows = []
    for m in (*PAIRED, *(f"cosine_{name}" for name in images["more"])):
        if m in paired:
            interval = mean_interval(paired[m], images["prompts"])
            rows.append(row(m, interval.mean, interval.low, interval.high, n, prompts))
        else:
            rows.append(row(m, n=n, n_prompts=prompts, reason=reasons[m]))
    sets, few = set_metrics(reference, images, kid_subset_size)
    return rows + [row(m, sets.get(m), n=n, n_prompts=prompts, reason=few.get(m, "")) for m in OF_SETS]


def pair_values(reference: dict, images: dict) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Metrics of pairs by name, a value per picture (n,), and the reasons of those that are not measured here."""
    values: dict[str, list[float]] = {"psnr_db": [], "ssim": []}
    missing = lpips_unavailable()
    if not missing:
        values["lpips"] = []
    for pair in zip(reference["pngs"], images["pngs"], strict=True):
        a, b = map(pixels, pair)
        for metric, function in (("psnr_db", psnr), ("ssim", ssim), ("lpips", lpips)):
            if metric in values:
                values[metric].append(function(a, b))
    paired = {metric: np.array(numbers) for metric, numbers in values.items()}
    paired["feature_cosine"] = cosines(reference["features"], images["features"])
    paired["quality_loss"] = quality_losses(paired["feature_cosine"], paired["ssim"])
    reasons = {"lpips": missing} if missing else {}
    if images["alignment"] is None:
        reasons |= dict.fromkeys(OF_TEXT, "the embedder of benchmark.features has no text tower")
    else:
        paired["prompt_alignment"] = images["alignment"]
        paired["prompt_alignment_change"] = images["alignment"] - reference["alignment"]
    more = {f"cosine_{name}": cosines(reference["more"][name], seen) for name, seen in images["more"].items()}
    return paired | more, reasons


def set_metrics(reference: dict, images: dict, kid_subset_size: int) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics of whole sets by name, and the reasons of those that these images or this embedder do not allow."""
    n = min(len(images["pngs"]), len(reference["pngs"]))
    few = {m: f"{m} needs at least {least} images, there are {n}" for m, least in LEAST_IMAGES.items() if n < least}
    if images["logits"] is None:
        few.setdefault("inception_score", "benchmark.classes names no classes, or the embedder has no text tower")
    metrics: dict[str, float] = {}
    pair = reference["features"], images["features"]
    if "fid" not in few:
        metrics["fid"] = fid(*pair)
        metrics["kid"] = kid(*pair, subset_size=kid_subset_size)
    if "inception_score" not in few:
        metrics["inception_score"] = inception_score(images["logits"])
    if "precision" not in few:
        metrics["precision"], metrics["recall"] = precision_recall(*pair)
    return metrics, few


def row(
    metric: str,
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
    n: int = 0,
    n_prompts: int = 0,
    reason: str = "",
) -> dict:
    """One row of the table `benchmark.quality`, less the run's identity; `small_n` marks what is no headline."""
    small = metric in BIASED and n < FID_LEAST_IMAGES
    cells = {"metric": metric, "value": value, "low": low, "high": high, "n": n, "n_prompts": n_prompts}
    return cells | {"small_n": small, "reason": reason}


def log_metrics(run: str, rows: list[dict]) -> None:
    """Say what was measured of a run, and once for each reason what was not."""
    values = [f"{r['metric']} {r['value']:.4g}" for r in rows if r["value"] is not None]
    log.info("%s: %s", run, ", ".join(values) or "nothing was measured")
    for reason in dict.fromkeys(r["reason"] for r in rows if r["value"] is None):
        missing = [r["metric"] for r in rows if r["value"] is None and r["reason"] == reason]
        log.info("%s: no %s: %s", run, ", ".join(missing), reason)
