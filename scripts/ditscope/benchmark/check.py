"""What `ditscope doctor` checks of the stage `benchmark`."""

import hashlib
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.benchmark.cases import benchmark_cases
from ditscope.benchmark.images import FLOOR
from ditscope.benchmark.run_tables import CASE_KEY, IDENTITY
from ditscope.benchmark.tables import NOISE_FLOOR, OF_SETS, PAIRED
from ditscope.core.errors import InputError
from ditscope.core.intervals import mean_interval, unit_means
from ditscope.core.schema import tables_of
from ditscope.core.shards import Sample
from ditscope.core.study import Study, alike, alike_text, beside, check_png, positive
from ditscope.generate.check import ENTRY
from ditscope.models.folders import check_safetensors
from ditscope.models.loading import settled


def check_benchmark(study: Study) -> None:
    """Every run has its row, images and timing, made as the config says; the joined tables have every run."""
    config = study.config
    runs = []
    stems = benchmark_stems(study)
    for stem in stems:
        runs += check_run(study, stem)
    folders = sorted({stem.rpartition("/")[0] for stem in stems})
    for folder in folders:
        check_quality(study, folder, [stem for stem in stems if stem.rpartition("/")[0] == folder])
    for file in study.targets("benchmark"):
        if file.startswith("checkpoints/") and (study.results / file).exists():
            with study.noting("benchmark", file):
                check_safetensors(study.results / file)
    joined = [file for file in study.targets("benchmark") if file.count("/") == 1]
    if not joined:
        return
    with study.noting("benchmark", joined[0]):
        wanted, names = join_again(study, stems, folders), {table.file: table.name for table in tables_of("benchmark")}
        for file in joined:
            name = Path(file).name.removesuffix(".parquet")
            path = study.results / file
            if file in names:
                table = study.table("benchmark", file, names[file])
                if table is None:
                    continue
                if not (name in ("targets", "flat_field") or (name == "quality" and config.benchmark.skip_metrics)):
                    own = table.filter(pl.col("kind") != NOISE_FLOOR)  # of the base once more, no run of its own
                    measured = sorted(set(own.select(CASE_KEY).rows()))
                    study.same_rows("benchmark", file, measured, sorted(runs), "runs")
                if wanted and (gives := wanted[name]).columns:
                    keys = [key for key in (*IDENTITY, "batch", "metric", "steps", "seed", "target") if key in gives]
                    study.agree("benchmark", file, table.sort(keys), gives.sort(keys))
            elif path.exists() and wanted and not alike_text(path.read_text(encoding="utf-8"), wanted[name]):
                study.note("benchmark", file, "is not what the joined tables give")


def join_again(study: Study, stems: list[str], folders: list[str]) -> dict[str, Any]:
    """The joined tables and the recommendation by name, from every run's files; nothing where one is missing."""
    from ditscope.benchmark.join import benchmark_table

    settings = study.config.benchmark
    files = [[study.results / f"{s}{kind}" for s in stems] for kind in (".parquet", ".timing.parquet", ".flat.parquet")]
    qualities = [] if settings.skip_metrics else [study.results / f"{folder}/quality.parquet" for folder in folders]
    parts = [*chain(*files), *qualities]
    if not all(path.exists() for path in parts):
        return {}

    def join() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            benchmark_table(files[0], files[1], qualities, files[2], out, settings)
            tables = {path.name.removesuffix(".parquet"): pl.read_parquet(path) for path in out.glob("*.parquet")}
            return tables | {path.name: path.read_text() for path in out.glob("*.md")}

    return study.once("joined benchmark", join, parts)


def check_run(study: Study, stem: str) -> list[tuple[str, str, str, str]]:
    """One run: its row, its images, its timing and its flat field; gives what names it."""
    settings = study.config.benchmark
    _, model, hardware, case = stem.split("/")
    file, clock = beside(f"{stem}.tar")
    flat_file = f"{stem}.flat.parquet"
    table = study.table("benchmark", file, "benchmark.run")
    timing = study.table("benchmark", clock, "benchmark.run.timing")
    flat = study.table("benchmark", flat_file, "benchmark.run.flat")
    samples = study.tar("benchmark", f"{stem}.tar")
    cases = {f"{scheme}-{compile}": (scheme, compile) for scheme, compile in benchmark_cases(settings)}
    scheme, compile = cases.get(case) or case.rpartition("-")[::2]
    if table is None:
        return []
    if len(table) != 1:
        study.note("benchmark", file, f"{len(table)} rows instead of one")
        return []
    row = table.row(0, named=True)
    study.same("benchmark", file, row, made_with(study, row, model, hardware, scheme, compile))
    check_sizes(study, file, row)
    identity = {key: row[key] for key in IDENTITY}
    for other, name in ((timing, clock), (flat, flat_file)):
        if other is not None:
            study.agree("benchmark", name, other, pl.DataFrame([identity] * len(other), infer_schema_length=None))
    if timing is not None:
        check_clock(study, clock, timing, row)
    if flat is not None and row["images"]:
        grid = [(steps, seed) for steps in settings.flat_field_steps for seed in range(settings.flat_field_seeds)]
        study.same_rows("benchmark", flat_file, flat.select("steps", "seed").rows(), grid, "steps and seeds")
        if not (flat["noise"].fill_null(-1) >= 0).all():
            study.note("benchmark", flat_file, "column `noise` has values that are not at least 0")
    if row["quality_batch"] != (settings.quality_batch or min(settings.batches)):
        study.note("benchmark", file, f"its images were sampled in batches of {row['quality_batch']}")
    floors = bool(samples) and row["kind"] == "base" and compile == "eager"
    if row["floor_batch"] != ((row["quality_batch"] // 2 or 2) if floors else None):
        study.note("benchmark", file, f"column `floor_batch` is {row['floor_batch']}")
    if samples is not None:
        check_images(study, f"{stem}.tar", samples, row, floors)
    return [(model, hardware, row["scheme"], row["compile"])]


def made_with(
    study: Study, row: dict[str, Any], model: str, hardware: str, scheme: str, compile: str
) -> dict[str, Any]:
    """What the row of a run is to say that it was made with: the model's entry as the benchmark uses it, the scheme."""
    config, settings = study.config, study.config.benchmark
    entry = config.models[model]
    guidance = settings.cfg_scale if settings.cfg_scale >= 0 else entry.guidance
    entry = settled(replace(entry, guidance=guidance, steps=settings.num_steps or entry.steps))
    wanted = {key: getattr(entry, key) for key in ENTRY if key in row}
    wanted |= {"model": model, "hardware": hardware, "scheme": scheme, "compile": compile}
    if scheme in config.schemes:
        from ditscope.models.quantize import label

        wanted["kind"] = label(config.schemes[scheme])
    return wanted


def check_images(study: Study, tar: str, samples: list[Sample], row: dict[str, Any], floors: bool) -> None:
    """The images of a run are those that its row counts and has the digest of, each with its own record."""
    made_of = sum(len(s["json"].get("runs") or [s]) for s in samples)
    if row["images"] != made_of:
        return study.note("benchmark", tar, f"{made_of} images; its table says {row['images']}")
    if not samples:
        return
    with study.noting("benchmark", tar):
        if hashlib.sha256(b"".join(s["png"] for s in samples)).hexdigest() != row["images_sha256"]:
            study.note("benchmark", tar, "its images are not those of its table (sha256)")
        for sample in samples:
            for member in ("png", *([FLOOR] if floors else [])):
                check_png(sample.get(member, b""), f"image {sample['__key__']}")
            made = {key: row[key] for key in ("model", "dtype", "steps", "guidance", "width", "height")}
            if unlike := [key for key, value in made.items() if not alike(sample["json"].get(key), value)]:
                raise InputError(f"the record of image {sample['__key__']}: `{unlike[0]}` is not that of its table")
            if sample["json"]["request_hash"] != sample["__key__"]:
                raise InputError(f"the record of image {sample['__key__']} has another request hash")


def check_sizes(study: Study, file: str, row: dict[str, Any]) -> None:
    """Sizes fit each other: nothing is quantized in a base, fused or not, and something in every other that ran."""
    base = row["kind"].split("+")[0] == "base"
    if base and (row["quantized_layers"] != 0 or row["mean_bits"] is not None or row["simulated"] is not False):
        study.note("benchmark", file, "the base says that it is quantized (quantized_layers, mean_bits or simulated)")
    if not base and not row["reason"] and not (row["quantized_layers"] and 0 < (row["mean_bits"] or 0) <= 16):
        study.note("benchmark", file, "a scheme without quantized layers or mean bits")
    if base and not row["reason"] and row["nominal_bytes"] != row["stored_bytes"]:
        study.note("benchmark", file, "the base stores another number of bytes than its weights have")
    if not (row["nominal_bytes"] or 0) > 0 or (not row["reason"] and not (row["stored_bytes"] or 0) > 0):
        study.note("benchmark", file, "has no size (nominal_bytes, stored_bytes)")
    if "encoder_nominal_bytes" not in row:  # of an earlier version
        return
    encoders = row["encoder_nominal_bytes"], row["encoder_stored_bytes"]
    if (row["stored_bytes"] is None) != (encoders[1] is None) or not (encoders[0] or 0) >= 0:
        study.note("benchmark", file, "text encoders have a size where it did not run, or none where it did")
    elif encoders[1] is not None and "text_encoders" not in row["kind"].split("+") and encoders[0] != encoders[1]:
        study.note("benchmark", file, "text encoders that no scheme quantizes are stored in another number of bytes")


def check_clock(study: Study, file: str, timing: pl.DataFrame, row: dict[str, Any]) -> None:
    """Batch sizes are those of the config; medians and percentiles are those of the timed runs."""
    settings = study.config.benchmark
    study.same_rows("benchmark", file, timing["batch"].to_list(), settings.batches, "batch sizes")
    ran = timing.filter(pl.col("reason") == "")
    lists = [values for values in ran["latencies_ms"].to_list() if values]
    if len(lists) < len(ran):
        return study.note("benchmark", file, "has no latencies (column `latencies_ms`)")
    quantiles = np.array([np.quantile(values, (0.1, 0.5, 0.9)) for values in lists]).reshape(-1, 3)
    wanted = pl.DataFrame(
        {
            "repeats": list(map(len, lists)),
            "latency_p10_ms": quantiles[:, 0],
            "latency_median_ms": quantiles[:, 1],
            "latency_p90_ms": quantiles[:, 2],
            "latency_per_image_ms": quantiles[:, 1] / ran["batch"].to_numpy(),
        }
    )
    study.agree("benchmark", file, ran, wanted)
    for name, gives in timing_summaries(lists, ran).items():
        study.agree("benchmark", file, ran, pl.DataFrame({name: gives}))
    parts = ["encode_median_ms", "denoise_median_ms", "decode_median_ms"]
    positive(study, "benchmark", file, ran, [*parts, "load_seconds", "prepare_seconds"])
    if (ran.select(pl.sum_horizontal(parts)).to_series() > quantiles[:, 2] * len(parts)).any():
        study.note("benchmark", file, "its parts take longer than the whole")


def timing_summaries(lists: list[list[float]], ran: pl.DataFrame) -> dict[str, list]:
    """Columns of a timing table that its latencies and the machine's load give: means, spread, verdict."""
    from ditscope.benchmark.quiet import spread_of, verdict

    means = [mean_interval(np.array(values), positive=True) for values in lists]
    spreads = [spread_of(values) for values in lists]
    rows = zip(spreads, ran.select("others_share", "gpu_throttling").rows(), strict=True)
    verdicts = [verdict(spread["latency_relative_iqr"], *load) for spread, load in rows]
    summaries: dict[str, list] = {
        "latency_mean_ms": [mean.mean for mean in means],
        "latency_mean_low_ms": [mean.low for mean in means],
        "latency_mean_high_ms": [mean.high for mean in means],
        "verdict": [noise for noise, _ in verdicts],
        "noisy_because": [why for _, why in verdicts],
    }
    return summaries | {name: [spread[name] for spread in spreads] for name in (spreads[0] if spreads else {})}


def check_quality(study: Study, folder: str, stems: list[str]) -> None:
    """Every run has every metric; those of pixels are what the images give."""
    settings = study.config.benchmark
    file = f"{folder}/quality.parquet"
    table = study.table("benchmark", file, "benchmark.quality")
    if settings.skip_metrics or table is None:
        return
    from ditscope.benchmark.quality import BIASED
    from ditscope.core.metrics import FID_LEAST_IMAGES

    metrics = [*PAIRED, *(f"cosine_{name}" for name in settings.cosines), *OF_SETS]
    rows = []
    for stem in stems:
        run = study.quiet().table("benchmark", f"{stem}.parquet", "benchmark.run")
        if run is None or len(run) != 1:
            return
        rows.append(run.row(0, named=True))
    names = [{key: row[key] for key in IDENTITY} for row in rows]
    images = dict(zip((tuple(name.values()) for name in names), (row["images"] for row in rows), strict=True))
    for row in rows:
        if row["floor_batch"]:
            floor = {"scheme": f"{row['scheme']}, batch {row['floor_batch']}", "kind": NOISE_FLOOR}
            names.append({key: row[key] for key in IDENTITY} | floor)
            images[tuple(names[-1].values())] = row["images"]
    identity = [name | {"metric": m} for name in names for m in metrics]
    keys = [*IDENTITY, "metric"]
    cells = table.sort(keys)
    if sorted(map(str, table.select(keys).rows())) != sorted(str(tuple(row.values())) for row in identity):
        return study.note("benchmark", file, "has not each metric of each run once")
    base = any(row["kind"] == "base" and row["compile"] == "eager" and row["images"] for row in rows)
    counts = [images[tuple(row[:-1])] if base else 0 for row in cells.select(keys).rows()]
    small = [m in BIASED and n < FID_LEAST_IMAGES for m, n in zip(cells["metric"], counts, strict=True)]
    study.agree("benchmark", file, cells, pl.DataFrame({"n": counts, "small_n": small}))
    prompts = study.once(f"prompts of {folder}", lambda: prompts_of(study, stems))
    study.agree("benchmark", file, cells, pl.DataFrame({"n_prompts": [prompts if n else 0 for n in counts]}))
    if (cells["value"].is_null() != (cells["reason"] != "")).any():
        study.note("benchmark", file, "has rows with neither a value nor a reason, or with both")
    value, slack = pl.col("value"), 1e-9 + pl.col("value").abs() * 1e-9
    outside = cells.filter((value < pl.col("low") - slack) | (value > pl.col("high") + slack))
    if len(outside):
        study.note("benchmark", file, f"{outside['metric'][0]}: a value outside of its own interval")
    wanted = study.once(f"pixels {folder}", lambda: pixel_metrics(study, stems, rows))
    for scheme, compile, metric, number in cells.select("scheme", "compile", "metric", "value").rows():
        gives = wanted.get((scheme, compile, metric))
        if gives is not None and not (number is not None and math.isclose(number, gives, rel_tol=1e-6)):
            study.note("benchmark", file, f"{scheme}-{compile}: {metric} is {number}, its images give {gives}")


def prompts_of(study: Study, stems: list[str]) -> int:
    """How many different prompts the images of a host's runs have."""
    quiet = study.quiet()
    samples = next((read for stem in stems if (read := quiet.tar("benchmark", f"{stem}.tar"))), [])
    return len({sample["json"]["prompt"] for sample in samples})


def pixel_metrics(study: Study, stems: list[str], rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Mean PSNR and SSIM of each run's images to the base's in eager mode, by scheme, compile state and metric."""
    from ditscope.ablate.check import measures, picture_of

    quiet = study.quiet()
    pictures: dict[tuple[str, str], dict[tuple, np.ndarray]] = {}
    prompts: dict[tuple, str] = {}
    for stem, row in zip(stems, rows, strict=True):
        with quiet.noting("benchmark", stem):
            samples = quiet.tar("benchmark", f"{stem}.tar") or []
            asked = {(run["prompt_id"], run["seed"]): picture_of(s) for s in samples for run in s["json"]["runs"]}
            prompts |= {(r["prompt_id"], r["seed"]): s["json"]["prompt"] for s in samples for r in s["json"]["runs"]}
            pictures[row["scheme"], row["compile"]] = asked
    base = next(
        (pictures.get((r["scheme"], r["compile"])) for r in rows if (r["kind"], r["compile"]) == ("base", "eager")),
        None,
    )
    if not base:
        return {}

    def measured(measure: Callable, base: dict, images: dict) -> tuple[np.ndarray, list[str]]:
        return np.array([measure(base[key], images[key]) for key in base]), [prompts[key] for key in base]

    return {
        (scheme, compile, metric): float(unit_means(*measured(measure, base, images)).mean())
        for (scheme, compile), images in pictures.items()
        if images.keys() == base.keys()
        for metric, measure in measures().items()
    }


def benchmark_stems(study: Study) -> list[str]:
    """Runs of the benchmark without extension: those that are planned here, and those that other machines made."""
    bench = study.config.benchmark
    planned = [tar.removesuffix(".tar") for tar in study.targets("benchmark") if tar.endswith(".tar")]
    elsewhere = [
        f"benchmarks/{model}/{host.name}/{scheme}-{compile}"
        for model in bench.models
        for host in sorted((study.results / "benchmarks" / model).glob("*/"))
        for scheme, compile in benchmark_cases(bench)
        if (host / f"{scheme}-{compile}.parquet").exists()
    ]
    return list(dict.fromkeys([*planned, *elsewhere]))
