"""Checks of sensitivity tables, bit plans and benchmarks: every cell is there, and each stage fits the one before."""

import hashlib
from pathlib import Path

import polars as pl

from ditscope.benchmark_columns import NOISE_FLOOR
from ditscope.doctor.books import benchmark_stems, beside
from ditscope.doctor.images import ENTRY
from ditscope.doctor.study import Study

SENSITIVITY = (
    "model layer kind depth module bits quantizer group_size bucket metric value n_samples n_images parameters"
)
RUN = "model hardware scheme kind compile dtype steps guidance width height images images_sha256 reason"
TIMING = "model hardware scheme compile batch latency_median_ms reason"
JOINED = {
    "benchmark": ("benchmark", RUN),
    "benchmark.timing": ("benchmark.timing", TIMING),
    "quality": ("benchmark.quality", "model hardware scheme kind compile metric value n n_prompts reason"),
}
CELL = ["model", "layer", "bits", "bucket", "metric"]


def check_sensitivity(study: Study) -> None:
    """Every layer has every bit width, bucket and metric; the table is the sum of its parts."""
    settings = study.config.sensitivity
    for file in study.targets("sensitivity"):
        if file != "sensitivity/sensitivity.parquet":
            continue
        table = study.table("sensitivity", file, "sensitivity", SENSITIVITY)
        parts = []
        for model in settings.models:
            for group in range(settings.layer_groups):
                part = f"sensitivity/{model}/layers-{group:03d}.parquet"
                parts.append(study.table("sensitivity", part, "sensitivity", SENSITIVITY))
        if table is None:
            continue
        study.same_rows("sensitivity", file, sorted(table["model"].unique()), sorted(settings.models), "models")
        study.same_rows("sensitivity", file, sorted(table["bits"].unique()), sorted(settings.bits), "bit widths")
        if wrong := set(table["quantizer"]) - {settings.quantizer}:
            study.note("sensitivity", file, f"quantizer {wrong.pop()}; the config says {settings.quantizer}")
        if table.select(CELL).is_duplicated().any():
            study.note("sensitivity", file, "has cells (model, layer, bits, bucket, metric) twice")
        for model, rows in table.partition_by("model", as_dict=True).items():
            expected = rows["layer"].n_unique() * rows["bits"].n_unique() * rows.select("bucket", "metric").n_unique()
            if len(rows) != expected:
                study.note("sensitivity", file, f"{model[0]}: {len(rows)} cells of {expected}")
        if all(part is not None for part in parts):
            whole = pl.concat([part for part in parts if part is not None])
            if not table.select([*CELL, "value"]).sort(CELL).equals(whole.select([*CELL, "value"]).sort(CELL)):
                study.note("sensitivity", file, "differs from the layers-*.parquet that it gathers")


def check_plan(study: Study) -> None:
    """Plans choose a measured bit width for every linear layer and keep their budget."""
    table = sensitivity_quietly(study)
    for file in study.targets("plan"):
        plan = study.json("plan", file)
        if plan is None:
            continue
        _, model, name = file.split("/")
        with study.noting("plan", file):
            study.same("plan", file, plan, {"model": model, "budget": name.removesuffix(".json")})
            if study.config.plan.metric != "auto":
                study.same("plan", file, plan, {"metric": study.config.plan.metric})
            if plan["nominal_bytes"] > plan["budget_bytes"]:
                study.note("plan", file, f"takes {plan['nominal_bytes']} bytes of {plan['budget_bytes']}")
            if unknown := set(plan["layers"].values()) - set(study.config.sensitivity.bits):
                study.note("plan", file, f"chooses {unknown.pop()} bits, which were not measured")
            if table is not None:
                rows = table.filter((pl.col("model") == model) & (pl.col("module") == "linear"))
                measured = sorted(rows["layer"].unique())
                planned = sorted([*plan["layers"], *plan["full_precision"]])
                study.same_rows("plan", file, planned, measured, "measured layers")
                for key in ("quantizer", "group_size"):
                    if len(rows) and plan[key] != rows[key][0]:
                        problem = f"made with {key} {plan[key]!r}, sensitivity was measured with {rows[key][0]!r}"
                        study.note("plan", file, problem)


def sensitivity_quietly(study: Study) -> pl.DataFrame | None:
    """The table `sensitivity`, if it can be read; its defects are noted by `check_sensitivity`."""
    quiet = Study(study.results, study.plan, study.config)
    return quiet.table("sensitivity", "sensitivity/sensitivity.parquet", "sensitivity", SENSITIVITY)


def check_benchmark(study: Study) -> None:
    """Every run has its row, images and timing, made as the config says; the joined tables have every run."""
    config = study.config
    runs = []
    for stem in benchmark_stems(study):
        _, model, hardware, _ = stem.split("/")
        file, timing = beside(f"{stem}.tar")
        table = study.table("benchmark", file, "benchmark.run", RUN)
        study.table("benchmark", timing, "benchmark.run.timing", TIMING)
        samples = study.tar("benchmark", f"{stem}.tar")
        if table is None:
            continue
        if len(table) != 1:
            study.note("benchmark", file, f"{len(table)} rows instead of one")
            continue
        row, entry = table.row(0, named=True), config.models[model]
        runs.append((model, hardware, row["scheme"], row["compile"]))
        wanted = {key: getattr(entry, key) for key in ENTRY if key in row} | {"model": model, "hardware": hardware}
        if config.benchmark.num_steps:
            wanted["steps"] = config.benchmark.num_steps
        if config.benchmark.cfg_scale >= 0:
            wanted["guidance"] = config.benchmark.cfg_scale
        study.same("benchmark", file, row, wanted)
        made = sum(len(s["json"].get("runs") or [s]) for s in samples or [])
        if samples is not None and row["images"] != made:
            study.note("benchmark", f"{stem}.tar", f"{made} images; its table says {row['images']}")
        elif samples and row["images_sha256"]:
            with study.noting("benchmark", f"{stem}.tar"):
                if hashlib.sha256(b"".join(s["png"] for s in samples)).hexdigest() != row["images_sha256"]:
                    study.note("benchmark", f"{stem}.tar", "its images are not those of its table (sha256)")
    for file in study.targets("benchmark"):
        name = Path(file).name.removesuffix(".parquet")
        if name not in JOINED:
            continue
        table = study.table("benchmark", file, *JOINED[name])
        if table is not None and not (name == "quality" and config.benchmark.skip_metrics):
            table = table.filter(pl.col("kind") != NOISE_FLOOR)  # of the base once more, no run of its own
            found = sorted(set(table.select("model", "hardware", "scheme", "compile").rows()))
            study.same_rows("benchmark", file, found, sorted(runs), "runs")
