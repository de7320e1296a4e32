"""Benchmark: one model under one scheme and one compile state, in a process of its own, all batch sizes inside.

Peaks and latencies follow one protocol: load, quantize and compile; then for each batch size warm-up runs, counters
reset, timed runs. What the machine cannot run is a row with the reason.
"""

import hashlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import polars as pl
import torch
from torchao.quantization.utils import recommended_inductor_config_setter
from tqdm import tqdm

from ditscope.benchmark.flat_field import noise_growth
from ditscope.benchmark.images import FLOOR, check_batch, check_kid_subset, check_made_with, is_of_a_set, read_images
from ditscope.benchmark.latency import TIMING_TYPES, first_line, timed
from ditscope.benchmark.memory import peaks, reset_peaks
from ditscope.benchmark.settings import COMPILE_STATES, Benchmark
from ditscope.benchmark.tables import FLAT_TYPES
from ditscope.core.counts import check_complete
from ditscope.core.errors import InputError
from ditscope.core.identity import scheme_id
from ditscope.core.names import unknown
from ditscope.core.paths import InputFile, InputFolder, OutputFolder
from ditscope.core.shards import Sample, write_tar
from ditscope.core.tables import read_table, write_table
from ditscope.models.hardware import fingerprint, hardware_id
from ditscope.models.loading import Generator, load_generator, settled
from ditscope.models.quantize import (
    INDIVISIBLE,
    apply_scheme,
    coverage,
    fuse_qkv,
    is_simulated,
    label,
    mean_bits,
    nominal_bytes,
    stored_bytes,
    unsupported,
)
from ditscope.models.requests import generate_slice, runs_by_picture, with_runs
from ditscope.models.settings import Embedder, Model, Scheme
from ditscope.prompts.files import read_runs

log = logging.getLogger(__name__)

BASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # the base in one type, as upstream names it
MODES = ("reduce-overhead", "max-autotune")  # of torch.compile, over the whole transformer, with CUDA graphs
AUTOTUNE_PROCESSORS = 68  # fewer: inductor times no matrix kernels of its own (torch._inductor.utils.is_big_gpu)
RUN_TYPES = {
    "mean_bits": pl.Float64,
    "stored_bytes": pl.Int64,
    "quality_batch": pl.Int64,
    "floor_batch": pl.Int64,
    **dict.fromkeys(("images_sha256", "images_reason"), pl.String),
}


def benchmark(
    name: str,
    model: Model,
    schemes: dict[str, Scheme],
    embedders: dict[str, Embedder],
    output_dir: OutputFolder,
    prompts: Sequence[InputFile] = (Path("all_prompts.csv"),),
    config: str = "base",
    compile: str = "eager",
    plan: InputFile | None = None,
    reference_dir: InputFolder | None = None,
    settings: Benchmark = Benchmark(),
) -> None:
    """Time, weigh and sample a model under the scheme `config`, and judge its images against `reference_dir`.

    Leaves in `output_dir`, under `<config>-<compile>`: `.timing.parquet` (table `benchmark.run.timing`, a row a batch
    size: latency and memory), `.parquet` (table `benchmark.run`: what the scheme is and weighs), `.tar` (the images of
    the first `num_images` runs of `prompts`: tables, or CSVs whose prompts repeat with new seeds where they are fewer),
    `.flat.parquet` (table `benchmark.run.flat`: the noise on a flat field, a row a step count and seed).

    `config` is a scheme of the config, or fp32, fp16 or bf16: the base in that type. `reference_dir` holds such files
    of the base in eager mode, or is a calibration set or its folder of images, which are compared as a set; with it,
    and unless `skip_metrics`, `quality.parquet` is left as well.
    """
    if config not in schemes and config in BASES:
        schemes, model = {**schemes, config: Scheme("base")}, replace(model, dtype=BASES[config])
    if config not in schemes:
        raise InputError(unknown("--config", config, [*schemes, *BASES], "in the config's `schemes`"))
    if compile not in COMPILE_STATES:
        raise InputError(unknown("--compile", compile, COMPILE_STATES, "a compile state"))
    scheme, model = schemes[config], requested(model, settings)
    runs = wanted_runs(prompts, settings.num_images)
    if len(runs) < settings.num_images and not settings.skip_metrics:
        raise InputError(
            f"benchmark.num_images: {settings.num_images}, but {', '.join(map(str, prompts))} hold {len(runs)} runs; "
            "add prompts or seeds, or ask for fewer images"
        )
    if not settings.skip_metrics:
        check_kid_subset(settings, settings.num_images, "benchmark.num_images")
    # Imported by name: how images are judged is no part of the code whose edits make timings stale.
    calibration = reference_dir is not None and is_of_a_set(reference_dir)
    judge = "ditscope.benchmark.quality_of_sets" if calibration else "ditscope.benchmark.quality"
    in_place = reference_dir is not None and reference_dir.resolve() == output_dir.resolve()
    is_base = label(scheme) == "base" and compile == "eager"
    if calibration and not settings.skip_metrics:
        import_module(judge).check_calibration(reference_dir, name, model, settings)
    elif reference_dir and not (settings.skip_metrics or (is_base and in_place)):
        check_reference(reference_dir, name, model, quality_batch_of(settings))
    hardware = hardware_id() if settings.hardware == "auto" else settings.hardware
    identity = {"model": name, "hardware": hardware, "scheme": config, "kind": label(scheme), "compile": compile}

    reset_peaks()
    began = time.perf_counter()
    generator = load_generator(name, model)
    load_seconds = time.perf_counter() - began
    transformer = generator.pipe.transformer
    if scheme.fuse_qkv:
        fuse_qkv(transformer)
    configs, left = coverage(transformer, scheme, plan)
    indivisible = [name for name, reason in left.items() if reason in INDIVISIBLE]
    if indivisible:
        log.warning("%s %s: %d layers cannot be divided: %s", name, config, len(indivisible), ", ".join(indivisible))
    made = {
        "dtype": model.dtype,
        "steps": model.steps,
        "guidance": model.guidance,
        "width": model.width,
        "height": model.height,
        "quantized_layers": len(configs),
        "skipped_layers": len(left) - len(indivisible),
        "indivisible_layers": len(indivisible),
        "indivisible": ", ".join(indivisible),
        "mean_bits": mean_bits(transformer, scheme, plan),
        "nominal_bytes": nominal_bytes(transformer, scheme, plan),
        "simulated": is_simulated(transformer, scheme, plan),
    }
    reason = prepare(generator, scheme, compile, plan)
    load = {"load_seconds": load_seconds, "prepare_seconds": time.perf_counter() - began - load_seconds}
    peak = {f"load_peak_{key}": value for key, value in peaks().items()}

    timings: list[dict] = []
    for batch in settings.batches:
        rows = [runs[i % len(runs)] for i in range(batch)]
        if compile != "eager":
            torch._dynamo.reset()  # graphs of the batch size before neither help nor hold memory
        found = (
            {"reason": reason}
            if reason
            else timed(generator, rows, settings.repeats, settings.warmup, settings.until_quiet)
        )
        timings.append({"batch": batch} | found)
        outcome = found["reason"] or f"{found['latency_median_ms']:.1f} ms, {found['verdict']} {found['noisy_because']}"
        log.info("%s %s %s: batch %d: %s", name, config, compile, batch, outcome)
    ran = [t["batch"] for t in timings if not t["reason"]]
    samples: list[Sample] = []
    grown: list[dict] = []
    batch, floor, unmade = quality_batch_of(settings), None, ""
    if ran and not settings.skip_metrics:
        name_of_run = config if compile == "eager" else f"{config}-{compile}"
        judged = runs[: settings.num_images]
        made_by = name_of_run, scheme_id(asdict(scheme), plan, compile)
        try:
            samples = generate_images(generator, judged, batch, *made_by)
            # Compiled, another batch size would be compiled anew; eager, a batch that is filled up would be waste.
            seeds = min(batch, settings.flat_field_seeds) if compile == "eager" else batch
            grown = noise_growth(generator, settings, seeds)
        except RuntimeError as error:  # out of memory: the timings stay
            log.exception("%s cannot sample %d images together", name, batch)
            samples, grown, unmade = [], [], f"no images in batches of {batch}: {first_line(error)}"
        if is_base and samples:
            samples, floor = with_noise_floor(generator, judged, samples, batch // 2 or 2, made_by[1])
        if samples:
            found_runs = [(run["prompt_id"], run["seed"]) for s in samples for run in s["json"]["runs"]]
            asked = [(run["prompt_id"], run["seed"]) for run in judged]
            check_complete(f"{output_dir / config}-{compile}.tar", "runs (prompt_id, seed)", asked, found_runs)

    made |= {
        "stored_bytes": stored_bytes(transformer) if not reason else None,
        "images": sum(len(s["json"]["runs"]) for s in samples),
        "quality_batch": batch,
        "floor_batch": floor,
        "images_reason": unmade,
        "images_sha256": hashlib.sha256(b"".join(s["png"] for s in samples)).hexdigest() if samples else None,
        "reason": reason or ("" if ran else "no batch size ran; the timing table has the reasons"),
    }
    stem = output_dir / f"{config}-{compile}"
    host = {"device": generator.device.type, "threads": torch.get_num_threads()} | fingerprint()
    write_tar(samples, f"{stem}.tar")
    flat = pl.DataFrame([identity | row for row in grown], schema=FLAT_TYPES)
    write_table(flat, f"{stem}.flat.parquet", "benchmark.run.flat")
    write_table(pl.DataFrame([identity | made], schema_overrides=RUN_TYPES), f"{stem}.parquet", "benchmark.run")
    table = pl.DataFrame(
        [identity | dict.fromkeys(TIMING_TYPES) | t | load | peak | host for t in timings],
        schema_overrides=TIMING_TYPES,
    )
    write_table(table, f"{stem}.timing.parquet", "benchmark.run.timing")
    if reference_dir and not settings.skip_metrics:
        run, out = Path(f"{stem}.parquet"), output_dir / "quality.parquet"
        if calibration:
            import_module(judge).quality_of_sets(run, reference_dir, out, embedders, settings)
        else:
            theirs = sorted(reference_dir.glob("*-eager.parquet"))  # the first base among them is the reference
            tables = dict.fromkeys([run, *theirs] if in_place else [*theirs, run])
            import_module(judge).quality(list(tables), out, embedders, settings)


def wanted_runs(prompts: Sequence[Path], count: int) -> list[dict]:
    """The runs of tables or CSVs; those of CSVs start over with the next seed where they are fewer than `count`."""
    runs = read_runs(*prompts)
    if any(path.suffix == ".parquet" for path in prompts):
        return runs
    rounds = range(max(1, -(-count // len(runs))))
    return [run | {"seed": (run["seed"] + number) % 2**63} for number in rounds for run in runs]


def quality_batch_of(settings: Benchmark) -> int:
    """Images that are sampled together for the quality metrics: in another batch, the last digits are others."""
    return settings.quality_batch or min(settings.batches)


def check_reference(folder: Path, name: str, model: Model, batch: int) -> None:
    """Refuse, before work, a reference of another model, size, steps, guidance or batch, or with a damaged image."""
    tables = {file: read_table(file, "benchmark.run").row(0, named=True) for file in folder.glob("*-eager.parquet")}
    base = next((file for file, run in tables.items() if run["kind"] == "base"), None)
    if base is None:
        raise InputError(f"{folder}: no run of the base scheme in eager mode to compare with; benchmark it first")
    check_made_with(tables[base], name, model, base)
    check_batch(tables[base], batch, base)
    read_images(base)


def requested(model: Model, settings: Benchmark) -> Model:
    """The model with the steps and the guidance that the benchmark asks for."""
    steps = settings.num_steps or model.steps
    guidance = model.guidance if settings.cfg_scale < 0 else settings.cfg_scale
    return settled(replace(model, steps=steps, guidance=guidance))


def prepare(generator: Generator, scheme: Scheme, compile: str, plan: Path | None) -> str:
    """Quantize and compile the transformer in place; the reason if that is not possible here, else an empty string."""
    transformer = generator.pipe.transformer
    on_mlx = generator.computes_on == "mlx"
    reason = unsupported(scheme, generator.computes_on, generator.entry.dtype)
    if reason := reason or uncompilable(compile, generator.computes_on):
        return reason
    try:
        apply_scheme(transformer, scheme, plan)
    except (RuntimeError, NotImplementedError, ImportError, AssertionError) as error:  # a kernel that is not there
        log.exception("%s cannot be quantized", generator.name)
        return first_line(error)
    if compile == "eager":
        return ""
    if on_mlx:
        transformer.compile()
        return ""
    mode = {"mode": compile} if compile in MODES else {}
    if scheme.compile_vae:
        generator.pipe.vae.decoder.compile(dynamic=False, **mode)
    recommended_inductor_config_setter()  # torchao's settings, for the base as well
    # Static shapes: the batch sizes are few, and one graph for all of them would be slower than one for each.
    if compile != "regional":
        transformer.compile(dynamic=False, **mode)
    else:
        for block in generator.family.blocks(transformer).values():
            block.compile(dynamic=False)
    return ""


def uncompilable(compile: str, computes_on: str) -> str:
    """Why a compile state cannot run on cuda, mps, cpu or mlx here; empty where it can.

    Sets torch.compile's caches inside the project.
    """
    if compile == "eager" or (computes_on == "mlx" and compile == "full"):
        return ""
    if computes_on == "mlx":
        return "MLX compiles the whole transformer at once, in one way; take `compile: full`"
    if compile == "reduce-overhead" and computes_on != "cuda":
        return f"reduce-overhead is CUDA graphs, which {computes_on} has not; take `compile: full`"
    if compile == "max-autotune" and computes_on == "mps":
        return "inductor has no kernels to choose from on mps; take `compile: full`"
    if compile == "max-autotune" and computes_on == "cuda":
        processors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
        if processors < AUTOTUNE_PROCESSORS:
            least = f"{AUTOTUNE_PROCESSORS} multiprocessors, this GPU has {processors}"
            return f"max-autotune chooses matrix kernels from {least}; take `compile: reduce-overhead`"
    cache = Path("resources/.cache").absolute()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError:
        return "torch.compile needs a C++ compiler (g++); install one or set CXX"
    return ""


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
