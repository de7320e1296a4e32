"""Checks of files as files: expected and missing, recorded digests, left over or unknown."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl

from ditscope.benchmark.check import benchmark_stems
from ditscope.calibrate.files import by_shard
from ditscope.core.checksums import FOLDER, files_of, read_record
from ditscope.core.errors import InputError
from ditscope.core.identity import file_digest
from ditscope.core.schema import tables_with
from ditscope.core.scratch import MARK
from ditscope.core.study import Finding, Study
from ditscope.core.study_plan import PLAN
from ditscope.prompts.files import first_runs, slice_name
from ditscope.sensitivity.check import parts_of
from ditscope.sensitivity.files import PARTS
from ditscope.trajectories.networks import trajectory_index

# Folders and files that belong to the study itself; logs and benchmarks of earlier configs do no harm.
OWN = ("logs/", ".benchmarks/", f"{FOLDER}/", ".partial/", PLAN, "progress.md", "report.html", "doctor.json")
MISSING = "missing"
# Where a file that no job of this config makes was made by a job of an earlier one.
SHARDED = (
    "prompts/*.parquet", "images/*/shard-*", "captures/*/*", "calibration/*/shards/*",
    "calibration/*/manifest.json", "calibration/*/activations.parquet", "sensitivity/*/*-*.parquet", "plans/*/*.json",
    "trajectories/*/shard-*", "embeddings/*/*-*.parquet", "refine/*/*", "videos/captures/*/*",
)  # fmt: skip
# What lies at the top of the results, and the stage that it is of.
PLACES = {
    "prompts": "prompts", "images": "generate", "captures": "capture", "analysis": "blocks", "ablation": "ablate",
    "calibration": "calibrate", "sensitivity": "sensitivity", "plans": "plan", "benchmarks": "benchmark",
    "checkpoints": "benchmark", "trajectories": "trajectories", "embeddings": "embed", "drift": "drift",
    "clusters": "cluster", "topology": "topology", "refine": "refine", "videos": "video", "figures": "publish",
    "tables": "publish", "catalog.duckdb": "publish", "explorer.html": "publish",
    "answers.parquet": "publish", "answers.html": "publish", "captions": "publish",
}  # fmt: skip


def expected_files(study: Study) -> dict[str, str]:
    """Every output that this config leaves, with its stage: what is planned, and what is on the way there."""
    config = study.config
    expected = {file: stage for stage in study.plan["targets"] for file in study.targets(stage)}
    runs = {f"{stem}.tar": "benchmark" for stem in benchmark_stems(study)}  # of this machine and of others
    for file, stage in [*expected.items(), *runs.items()]:
        expected |= dict.fromkeys([file, *tables_with(stage, file)], stage)
    expected |= dict.fromkeys(prompt_slices(study), "prompts")
    shards = by_shard(range(config.calibrate.num_images), config.calibrate.shard_size)
    for model in {file.split("/")[1] for file in study.targets("calibrate")}:
        expected |= {f"calibration/{model}/shards/{name}": "calibrate" for name in shards}
    expected |= {file: "sensitivity" for part in PARTS for file in parts_of(study, part)}
    if not config.benchmark.skip_metrics:
        expected |= {f"{Path(run).parent.as_posix()}/quality.parquet": "benchmark" for run in runs}
    return expected


def prompt_slices(study: Study) -> list[str]:
    """The tables of first runs that trajectories, captures and ablations are given, where the prompt CSV is at hand."""
    config, prompts = study.config, study.config.prompts
    if not Path(prompts.csv).is_file():
        return []

    def slices() -> list[str]:
        parts: list[dict[str, Any]] = []
        with study.quiet().noting("prompts", prompts.csv):
            if study.targets("trajectories"):
                parts += trajectory_index(prompts, config.trajectories, config.experiment)
            captured = [target.split("/")[1:] for target in study.targets("capture")]
            sets = {name for model, name in captured if model not in config.capture.sources}
            counts = [config.capture.sets[name].generations for name in sorted(sets)]
            counts += [config.ablate.generations] if study.targets("ablate") else []
            parts += [first_runs(prompts, config.experiment, count) for count in counts]
        return [f"prompts/runs-{slice_name(part)}.parquet" for part in parts]

    return study.once("prompt slices", slices)


def check_missing(study: Study) -> None:
    """Every output that this config leaves is there, and no file of it is empty."""
    for file, stage in sorted(expected_files(study).items()):
        path = study.results / file
        if not path.exists():
            study.note(stage, file, MISSING)
        elif path.is_file() and path.stat().st_size == 0:
            study.note(stage, file, "empty")


def check_tables(study: Study) -> None:
    """Every table that this config leaves says what it is, in this schema version, and has no NaN."""
    for file, stage in sorted(expected_files(study).items()):
        path = study.results / file
        if file.endswith(".parquet") and path.exists():
            with study.noting(stage, file):
                name = pl.read_parquet_metadata(path).get("table")
                if not name:
                    raise InputError("a Parquet file, but no table of ditscope (its metadata names none)")
                study.table(stage, file, name)


def check_checksums(study: Study) -> None:
    """Files are byte for byte what their job left; every output has a record, and directories hold no other file."""
    expected = expected_files(study) | {PLAN: "files"}
    recorded: dict[str, dict[str, Any]] = {}
    for path in sorted((study.results / FOLDER).rglob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path)):
        with study.noting("checksums", path.relative_to(study.results).as_posix()):
            recorded |= read_record(path)["files"]  # of two jobs that left a file, under other settings, the later one
    for file, entry in sorted(recorded.items()):
        output = output_of(file, expected)
        if output and (study.results / output).exists() and (problem := damage(study.results / file, entry)):
            study.note(expected[output], file, problem, output)
    folders = {"/".join(Path(file).parts[:count]) for file in recorded for count in range(1, len(Path(file).parts))}
    known = recorded.keys() | folders | made_elsewhere(study)
    for output, stage in sorted(expected.items()):
        path = study.results / output
        if recorded.keys() - {PLAN} and path.exists() and output not in known:
            study.note(stage, output, "no digest of it is recorded: its record is gone, or no job left it")
        if path.is_dir() and output in folders:
            for inside in files_of(path):
                name = inside.relative_to(study.results).as_posix()
                if name not in recorded:
                    problem = "no job left this file"
                    study.findings.append(Finding(stage, name, problem, remove=name))


def made_elsewhere(study: Study) -> set[str]:
    """Files of benchmark runs that other machines made: they come without their records."""
    planned = {file.removesuffix(".tar") for file in study.targets("benchmark") if file.endswith(".tar")}
    stems = [stem for stem in benchmark_stems(study) if stem not in planned]
    files = {f"{stem}{kind}" for stem in stems for kind in (".tar", ".parquet", ".timing.parquet", ".flat.parquet")}
    return files | {f"{stem.rpartition('/')[0]}/quality.parquet" for stem in stems}


def output_of(file: str, expected: dict[str, str]) -> str:
    """The expected output that a file is, or lies in; empty where there is none."""
    parts = Path(file).parts
    names = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in expected), "")


def damage(path: Path, entry: dict) -> str:
    """How a file differs from its recorded size and sha256; empty where it does not."""
    if not path.exists():
        return "missing from the directory that its job left"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"{size} bytes, {entry['bytes']} when its job left it"
    return "" if file_digest(path, 256) == entry["sha256"] else "its bytes changed since its job left it (sha256)"


def check_left_over(study: Study) -> None:
    """Nothing lies about: no file that no job makes, no half-written one, no unfinished work of a finished job.

    Results of a stage that is not asked for are none of it: they may be of another selection of `stages`.
    """
    expected = expected_files(study)
    rules = [re.compile(pattern(glob)) for rule in study.plan["rules"].values() for glob in rule["outputs"]]
    sharded = [re.compile(pattern(glob)) for glob in SHARDED]
    for path in files_of(study.results):
        name = path.relative_to(study.results).as_posix()
        if name.startswith(OWN) and not name.endswith(".partial"):
            continue
        problem = ""
        if any(part.endswith(".partial") for part in path.relative_to(study.results).parts if part != ".partial"):
            problem = "half-written by a job that was interrupted"
        elif output_of(name, expected) or of_other_stages(study, name):
            continue
        elif not any(rule.match(name) for rule in rules):
            problem = "no job of the workflow makes this file"
        elif any(rule.match(name) for rule in sharded):
            problem = "this config asks for no such output"
        if problem:
            study.findings.append(Finding("leftovers", name, problem, remove=name))
    for mark in sorted((study.results / ".partial").rglob(MARK)):
        name = mark.parent.relative_to(study.results).as_posix()
        with study.noting("leftovers", name):
            output = str(json.loads(mark.read_text())["output"]).removeprefix(study.prefix)
            if (study.results / output).exists() or output not in expected:
                problem = f"unfinished work for {output}, which is finished or no longer asked for"
                study.findings.append(Finding("leftovers", name, problem, remove=name))


def of_other_stages(study: Study, name: str) -> bool:
    """Whether a file is of a stage that is not asked for, or runs of the first prompts, which such a stage may read."""
    asked, stage = study.config.asked(), PLACES.get(name.split("/")[0])
    slices = name.startswith("prompts/runs-") and bool(study.config.stages)
    return slices or (stage is not None and stage not in asked)


def pattern(glob: str) -> str:
    """A glob of outputs as a regular expression; it also matches what lies below a directory."""
    return re.escape(glob).replace(r"\*", "[^/]*") + r"(/.*)?$"
