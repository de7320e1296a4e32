"""The doctor cannot be fooled: every column of every table, and every kind of file, is falsified in turn.

What jobs recorded of their files is left out of it: only what the contents say counts. What cannot be seen in them is
listed here with the reason, and no more than that.
"""

import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from ditscope.doctor.examine import CHECKS
from ditscope.doctor.study import Finding, Study, open_study
from ditscope.tables import read_table, write_table
from mutations import column_mutants, row_mutants

# The check of each folder of a study.
CHECK_OF = {
    "prompts": "prompts", "images": "generate", "captures": "capture", "analysis": "blocks", "ablation": "ablate",
    "calibration": "calibrate", "sensitivity": "sensitivity", "plans": "plan", "benchmarks": "benchmark",
    "trajectories": "trajectories", "embeddings": "embed", "drift": "analyses", "clusters": "analyses",
    "topology": "analyses", "refine": "refine",
}  # fmt: skip
MEASURED = "a measured time: only that it is above 0 can be checked"
PLACED = "t-SNE moves far with rounding: another machine's coordinates are others"
# Columns that a falsified value can stand in, by table and kind of file.
UNSEEN: dict[tuple[str, str, str], str] = {}


@pytest.fixture(scope="module")
def results(study, tmp_path_factory) -> Path:
    """A copy of the tiny study's results, which each test leaves as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study)
        yield Path(shutil.copytree(study / "results/tiny", tmp_path_factory.mktemp("falsified") / "tiny"))


@pytest.fixture(scope="module")
def computed() -> dict:
    """What the stages' inputs give, computed once for all tests: the inputs stay."""
    return {}


def role(path: Path) -> str:
    """Kind of a file among those of its table: sensitivity's joined table, its layers and its fast parts."""
    top = path.parts[0]
    if top in ("sensitivity", "prompts"):
        return re.split(r"[-.]", path.name)[0]
    return "joined" if top == "benchmarks" and len(path.parts) == 2 else ""


def narrowed(study: Study, path: Path) -> dict:
    """The plan with the targets of the file's own model alone, where its stage keeps models apart."""
    top = path.parts[0]
    if top not in ("images", "captures", "analysis", "calibration"):
        return study.plan
    targets = study.plan["targets"]
    stage = {"images": "generate", "captures": "capture", "analysis": "blocks", "calibration": "calibrate"}[top]
    kept = [target for target in targets[stage] if f"/{path.parts[1]}/" in target]
    return study.plan | {"targets": targets | {stage: kept}}


def tables(results: Path) -> dict[tuple[str, str], Path]:
    """The first file of each table and kind, relative to the results."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(results.rglob("*.parquet")):
        relative = path.relative_to(results)
        found.setdefault((pl.read_parquet_metadata(path)["table"], role(relative)), relative)
    return found


def test_every_falsified_column_is_found(results, computed):
    sound = open_study(results)
    known: dict[Path, pl.DataFrame] = {}

    def check(file: Path) -> list[Finding]:
        """The findings of the file's own stage; every other table is read once for all."""

        def read(path: Path, name: str) -> pl.DataFrame:
            if path == results / file:
                return read_table(path, name)
            if path not in known:
                known[path] = read_table(path, name)
            return known[path]

        study = Study(results, narrowed(sound, file), sound.config, read=read, computed=computed)
        CHECKS[CHECK_OF[file.parts[0]]](study)
        return study.findings

    unseen = set()
    for (name, kind), file in tables(results).items():
        path = results / file
        table, whole = pl.read_parquet(path), path.read_bytes()
        assert check(file) == []
        mutants = [(column, *mutant) for column in table.columns for mutant in column_mutants(table, column)]
        mutants += [("", *mutant) for mutant in row_mutants(table)]
        for column, what, mutant in mutants:
            write_table(mutant, path, name)
            findings = check(file)
            assert all("\n" not in finding.problem for finding in findings)
            if not findings:
                unseen.add((name, kind, column))
                print(f"{name} ({file}), {column}: {what}: not found")
        path.write_bytes(whole)
    assert unseen == UNSEEN.keys()
