"""One benchmark run: a model under one scheme and one compile state, in a process of its own, all batch sizes inside.

Peaks and latencies follow one protocol: load, quantize and compile; then for each batch size warm-up runs, counters
reset, timed runs. What the machine cannot run is a row with the reason.
"""

import hashlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tqdm import tqdm

from ditscope.benchmark.flat_field import noise_growth
from ditscope.benchmark.images import FLOOR, check_kid_subset
from ditscope.benchmark.latency import timed
from ditscope.benchmark.memory import peaks, reset_peaks
from ditscope.benchmark.run_tables import OF_RUN, RUN_FLAT, RUN_TIMING
from ditscope.benchmark.settings import Benchmark
from ditscope.calibrate.files import CalibrationSet
from ditscope.calibrate.load import calibration_id, calibration_of_scheme, measure_on
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError, first_line
from ditscope.core.identity import scheme_id
from ditscope.core.names import unknown
from ditscope.core.shards import Sample, write_tar
from ditscope.core.tables import write_table
from ditscope.models.hardware import fingerprint, hardware_id
from ditscope.models.loading import Generator, load_generator, settled
from ditscope.models.prepare import prepare
from ditscope.models.quantize import (
    INDIVISIBLE,
    check_plan,
    coverage,
    fuse_qkv,
    is_simulated,
    label,
    mean_bits,
    nominal_bytes,
    stored_bytes,
)
from ditscope.models.requests import generate_slice, runs_by_picture, with_runs
from ditscope.models.sampling import transformers_of
from ditscope.models.settings import CALIBRATE, COMPILE_STATES, Model, Scheme, calibrated_on
from ditscope.models.text_encoders import encoder_bytes, nominal_encoder_bytes
from ditscope.prompts.files import read_runs

log = logging.getLogger(__name__)

BASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # the base in one type, as upstream names it


@dataclass(frozen=True)
class Case:
    """What one run measures."""

    name: str
    model: Model
    config: str  # the scheme's name
    scheme: Scheme
    compile: str
    plan: Path | None
    settings: Benchmark
    calibration: CalibrationSet | None = None  # what the scheme is solved from

    @property
    def is_base(self) -> bool:
        """Whether this is what other runs are compared with: the base scheme in eager mode."""
        return label(self.scheme) == "base" and self.compile == "eager"

    @property
    def quality_batch(self) -> int:
        """Images that are sampled together for the quality metrics: in another batch, the last digits are others."""
        return self.settings.quality_batch or min(self.settings.batches)

    @property
    def stem(self) -> str:
        """The name of its files, without suffix."""
        return f"{self.config}-{self.compile}"


@dataclass(frozen=True)
class Loaded:
    """A generator that is quantized and compiled, as far as that can be done here."""

    generator: Generator
    about: dict[str, Any]  # what it is made with, and what the scheme does to it: columns of `benchmark.run`
    loading: dict[str, Any]  # seconds and memory peaks: columns of `benchmark.run.timing`
    stored_bytes: int | None
    reason: str  # why it cannot be quantized or compiled here; empty where it can


@dataclass(frozen=True)
class Sampled:
    """The images of a run, and the noise on a flat field."""

    images: list[Sample] = field(default_factory=list)
    flat: list[dict[str, Any]] = field(default_factory=list)
    floor_batch: int | None = None  # of the second set of images, whose difference is the noise floor
    reason: str = ""  # why there are none


def case_of(
    name: str,
    model: Model,
    schemes: dict[str, Scheme],
    config: str,
    compile: str,
    plan: Path | None,
    settings: Benchmark,
    calibration: Path | None = None,
) -> Case:
    """The case that a command or a job asks for. Raises InputError for choices that are none.

    `calibration` is the calibrate stage's set, where the scheme does not name a folder of its own.
    """
    if config not in schemes and config in BASES:
        schemes, model = {**schemes, config: Scheme("base")}, replace(model, dtype=BASES[config])
    if config not in schemes:
        raise InputError(unknown("--config", config, [*schemes, *BASES], "in the config's `schemes`"))
    if compile not in COMPILE_STATES:
        raise InputError(unknown("--compile", compile, COMPILE_STATES, "a compile state"))
    scheme = calibrated_on(schemes[config], name, calibration or CALIBRATE)
    check_plan(scheme, plan)
    steps = settings.num_steps or model.steps
    guidance = model.guidance if settings.cfg_scale < 0 else settings.cfg_scale
    model = settled(replace(model, steps=steps, guidance=guidance))
    calibrated = calibration_of_scheme(scheme, name, model)
    return Case(name, model, config, scheme, compile, plan, settings, calibrated)


def wanted_runs(prompts: Sequence[Path], settings: Benchmark) -> list[dict]:
    """The runs of tables or CSVs; those of CSVs start over with the next seed where they are fewer than `num_images`.

    Raises InputError where they are too few for the images, or the images for KID.
    """
    runs = read_runs(*prompts)
    if not any(path.suffix == ".parquet" for path in prompts):
        rounds = range(max(1, -(-settings.num_images // len(runs))))
        runs = [run | {"seed": (run["seed"] + number) % 2**63} for number in rounds for run in runs]
    if settings.skip_metrics:
        return runs
    if len(runs) < settings.num_images:
        raise InputError(
            f"benchmark.num_images: {settings.num_images}, but {', '.join(map(str, prompts))} hold {len(runs)} runs; "
            "add prompts or seeds, or ask for fewer images"
        )
    check_kid_subset(settings, settings.num_images, "benchmark.num_images")
    return runs


def measure(case: Case, runs: list[dict], folder: Path) -> None:
    """Load, time, sample and write one run; `runs` are those of its pictures, of which the latencies take the first.

    Leaves in `folder`, under `<config>-<compile>`: `.timing.parquet` (table `benchmark.run.timing`), `.parquet` (table
    `benchmark.run`), `.tar` (images) and `.flat.parquet` (table `benchmark.run.flat`).
    """
    loaded = load(case)
    timings = time_batches(case, loaded, runs)
    sampled = Sampled()
    if not all(timing["reason"] for timing in timings) and not case.settings.skip_metrics:
        judged = runs[: case.settings.num_images]
        sampled = sample(case, loaded.generator, judged)
        if sampled.images:
            made = [(run["prompt_id"], run["seed"]) for s in sampled.images for run in s["json"]["runs"]]
            asked = [(run["prompt_id"], run["seed"]) for run in judged]
            check_complete(folder / f"{case.stem}.tar", "runs (prompt_id, seed)", asked, made)
    write(case, loaded, timings, sampled, folder / case.stem)


def load(case: Case) -> Loaded:
    """Load the generator, quantize and compile it."""
    reset_peaks()
    began = time.perf_counter()
    generator = load_generator(case.name, case.model)
    load_seconds = time.perf_counter() - began
    transformers, asked = transformers_of(generator.pipe), (case.scheme, case.plan)
    for transformer in transformers:
        if case.scheme.fuse_qkv and hasattr(transformer, "fuse_qkv_projections"):  # else `prepare` has the reason
            fuse_qkv(transformer)
    covered = [coverage(transformer, *asked) for transformer in transformers]
    configs = [name for of_one, _ in covered for name in of_one]
    left = [(name, reason) for _, of_one in covered for name, reason in of_one.items()]
    indivisible = [name for name, reason in left if reason in INDIVISIBLE]
    if indivisible:
        layers = ", ".join(indivisible)
        log.warning("%s %s: %d layers cannot be divided: %s", case.name, case.config, len(indivisible), layers)
    about: dict[str, Any] = {
        "dtype": case.model.dtype,
        "steps": case.model.steps,
        "guidance": case.model.guidance,
        "width": case.model.width,
        "height": case.model.height,
        "quantized_layers": len(configs),
        "skipped_layers": len(left) - len(indivisible),
        "indivisible_layers": len(indivisible),
        "indivisible": ", ".join(indivisible),
        "mean_bits": mean_bits(transformers[0], *asked),  # a second one has the same layers
        "nominal_bytes": sum(nominal_bytes(transformer, *asked) for transformer in transformers),
        "simulated": is_simulated(transformers[0], *asked),
        "encoder_nominal_bytes": nominal_encoder_bytes(generator.pipe, case.scheme),
    }
    reason = prepare(generator, case.scheme, case.compile, case.plan, measure_on(generator, case.calibration))
    loading: dict[str, Any] = {
        "load_seconds": load_seconds,
        "prepare_seconds": time.perf_counter() - began - load_seconds,
    }
    loading |= {f"load_peak_{key}": value for key, value in peaks().items()}
    return Loaded(generator, about, loading, None if reason else sum(map(stored_bytes, transformers)), reason)


def time_batches(case: Case, loaded: Loaded, runs: list[dict]) -> list[dict[str, Any]]:
    """Latencies and peaks of each batch size, or the reason why there are none: rows of the timing table."""
    settings, timings = case.settings, []
    for batch in settings.batches:
        rows = [runs[i % len(runs)] for i in range(batch)]
        if case.compile != "eager":
            torch._dynamo.reset()  # graphs of the batch size before neither help nor hold memory
        if loaded.reason:
            timing = {"reason": loaded.reason}
        else:
            timing = timed(loaded.generator, rows, settings.repeats, settings.warmup, settings.until_quiet)
        timings.append({"batch": batch} | timing)
        outcome = (
            timing["reason"] or f"{timing['latency_median_ms']:.1f} ms, {timing['verdict']} {timing['noisy_because']}"
        )
        log.info("%s %s %s: batch %d: %s", case.name, case.config, case.compile, batch, outcome)
    return timings


def sample(case: Case, generator: Generator, runs: list[dict]) -> Sampled:
    """The images that quality is judged by and the noise on a flat field; the reason where memory does not suffice."""
    batch, settings = case.quality_batch, case.settings
    made_by = case.config if case.compile == "eager" else case.stem
    scheme_key = scheme_id(asdict(case.scheme), case.plan, case.compile, calibration_id(case.scheme))
    try:
        images = generate_images(generator, runs, batch, made_by, scheme_key)
        # Compiled, another batch size would be compiled anew; eager, a batch that is filled up would be waste.
        seeds = min(batch, settings.flat_field_seeds) if case.compile == "eager" else batch
        flat = noise_growth(generator, settings, seeds)
    except RuntimeError as error:  # out of memory: the timings stay
        log.exception("%s cannot sample %d images together", case.name, batch)
        return Sampled(reason=f"no images in batches of {batch}: {first_line(error)}")
    if cache := getattr(generator.pipe.transformer, "step_cache", None):
        log.info("%s %s: %d of %d steps skipped", case.name, case.config, cache.skipped, cache.calls)
    if not case.is_base:
        return Sampled(images, flat)
    images, floor = with_noise_floor(generator, runs, images, batch // 2 or 2, scheme_key)
    return Sampled(images, flat, floor)


def write(case: Case, loaded: Loaded, timings: list[dict[str, Any]], sampled: Sampled, stem: Path) -> None:
    """Write the images and the three tables of a run."""
    hardware = hardware_id() if case.settings.hardware == "auto" else case.settings.hardware
    identity = {
        "model": case.name,
        "hardware": hardware,
        "scheme": case.config,
        "kind": label(case.scheme),
        "compile": case.compile,
    }
    images = sampled.images
    none_ran = "no batch size ran; the timing table has the reasons" if all(t["reason"] for t in timings) else ""
    about = loaded.about | {
        "stored_bytes": loaded.stored_bytes,
        "encoder_stored_bytes": None if loaded.reason else encoder_bytes(loaded.generator.pipe),
        "images": sum(len(s["json"]["runs"]) for s in images),
        "quality_batch": case.quality_batch,
        "floor_batch": sampled.floor_batch,
        "images_reason": sampled.reason,
        "images_sha256": hashlib.sha256(b"".join(s["png"] for s in images)).hexdigest() if images else None,
        "reason": loaded.reason or none_ran,
    }
    host = {"device": loaded.generator.device.type, "threads": torch.get_num_threads()} | fingerprint()
    rows = [identity | timing | loaded.loading | host for timing in timings]
    write_tar(images, f"{stem}.tar")
    flat = pl.DataFrame([identity | row for row in sampled.flat], schema=RUN_FLAT.schema())
    write_table(flat, f"{stem}.flat.parquet", RUN_FLAT)
    write_table(pl.DataFrame([identity | about], schema=OF_RUN.schema(optional=True)), f"{stem}.parquet", OF_RUN)
    write_table(pl.DataFrame(rows, schema=RUN_TIMING.schema()), f"{stem}.timing.parquet", RUN_TIMING)


def with_noise_floor(
    generator: Generator, runs: list[dict], samples: list[Sample], batch: int, scheme_key: str
) -> tuple[list[Sample], int | None]:
    """Samples that also hold their picture as sampled in batches of `batch`, and that size; None where it fails."""
    try:
        again = generate_images(generator, runs, batch, "noise floor", scheme_key)
    except RuntimeError:  # out of memory
        log.exception("%s cannot sample %d images together: no noise floor", generator.name, batch)
        return samples, None
    return [s | {FLOOR: other["png"]} for s, other in zip(samples, again, strict=True)], batch


def generate_images(generator: Generator, runs: list[dict], batch: int, label: str, scheme_key: str) -> list[Sample]:
    """WebDataset samples of the runs, in batches of one size (a smaller last one would be compiled anew).

    Runs that ask for the same picture share it.
    """
    samples: list[Sample] = []
    groups = runs_by_picture(generator.name, generator.entry, runs)
    firsts = [group[0] for group in groups]
    with tqdm(total=len(firsts), desc=f"{generator.name} {label}", unit="img", disable=None) as bar:
        began = time.perf_counter()
        for start in range(0, len(firsts), batch):
            rows = firsts[start : start + batch]
            filled = [rows[i % len(rows)] for i in range(batch)]
            samples += generate_slice(generator, filled, label, scheme_key)[: len(rows)]
            bar.update(len(rows))
            each = (time.perf_counter() - began) / len(samples)
            peak = peaks()
            memory = (peak["allocated_bytes"] or peak["mlx_bytes"] or peak["rss_bytes"] or 0) / 1e9
            eta = f"{each * (len(firsts) - len(samples)):.0f}s"
            kind = "metal_GB" if peak["mlx_bytes"] and sys.platform == "darwin" else "memory_GB"
            bar.set_postfix({"s/img": f"{each:.2f}", "ETA": eta, kind: f"{memory:.2f}"})
    return with_runs(samples, groups)
