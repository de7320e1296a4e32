"""What every check is given: the study's folder, plan and config, readers that take down defects, and the findings."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from ditscope.config import decode
from ditscope.errors import MALFORMED, InputError
from ditscope.progress import PLAN, read_plan
from ditscope.settings import Config
from ditscope.shards import Sample, read_tar
from ditscope.tables import POLARS, read_table

PLAN_VERSION = "1"
# What reading a damaged or missing file of a study raises; none of the machine's errors.
DAMAGED: tuple[type[BaseException], ...] = (
    *MALFORMED, *POLARS, FileNotFoundError, NotADirectoryError, IsADirectoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One defect: where, what, and what mends it."""

    stage: str
    file: str  # relative to the study's results
    problem: str
    rerun: str = ""  # the output that Snakemake must make again; empty where a file is only to be removed
    remove: str = ""


@dataclass(frozen=True)
class Study:
    """A results tree under examination."""

    results: Path
    plan: dict[str, Any]
    config: Config
    findings: list[Finding] = field(default_factory=list)

    @property
    def prefix(self) -> str:
        """How the workflow names the results folder in paths of targets."""
        return f"results/{self.config.experiment}/"

    def targets(self, stage: str) -> list[str]:
        """What a stage leaves, relative to the results, as the last run planned it."""
        return [target.removeprefix(self.prefix) for target in self.plan["targets"].get(stage, [])]

    def note(self, stage: str, file: str, problem: str, rerun: str = "") -> None:
        """Take down a defect of `file`, once, that running the job of `rerun` (default: of `file`) again mends."""
        finding = Finding(stage, file, " ".join(problem.split()), rerun or file)
        if finding not in self.findings:
            self.findings.append(finding)

    @contextmanager
    def noting(self, stage: str, file: str, rerun: str = "") -> Iterator[None]:
        """Take down a refusal or an unreadable value as a defect of `file`, and go on."""
        try:
            yield
        except InputError as error:
            self.note(stage, file, str(error).removeprefix(f"{self.results / file}: "), rerun)
        except DAMAGED as error:
            self.note(stage, file, f"unreadable ({type(error).__name__}: {error})", rerun)

    def table(self, stage: str, file: str, name: str, columns: str, rerun: str = "") -> pl.DataFrame | None:
        """A table with at least `columns` and no NaN or infinite number; None where it is missing or was noted."""
        path = self.results / file
        if not os.path.exists(path):
            return None
        with self.noting(stage, file, rerun):
            table = read_table(path, name)
            if lacking := [column for column in columns.split() if column not in table.columns]:
                raise InputError(f"lacks the column `{lacking[0]}`")
            for column, kind in table.schema.items():
                if kind.is_float() and not table[column].is_finite().all():
                    raise InputError(f"column `{column}` has NaN or infinite values")
                if kind == pl.List(pl.Float32) and not table[column].explode().is_finite().all():
                    raise InputError(f"column `{column}` has NaN or infinite values")
            return table
        return None

    def json(self, stage: str, file: str, rerun: str = "") -> dict[str, Any] | None:
        """A JSON map with schema version 1; None where it is missing or was noted."""
        path = self.results / file
        if not os.path.exists(path):
            return None
        with self.noting(stage, file, rerun):
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema_version"] != "1":
                raise InputError(f"schema version {document['schema_version']}, this ditscope reads 1")
            return document
        return None

    def tar(self, stage: str, file: str) -> list[Sample] | None:
        """The samples of a shard; None where it is missing or was noted."""
        if not os.path.exists(self.results / file):
            return None
        with self.noting(stage, file):
            return list(read_tar(self.results / file))
        return None

    def same(self, stage: str, file: str, found: dict[str, Any], wanted: dict[str, Any], rerun: str = "") -> None:
        """Take down every key of `wanted` that `found` has another value of."""
        for key, value in wanted.items():
            if found.get(key) != value:
                problem = f"made with {key} {found.get(key)!r}, the config says {value!r}"
                self.note(stage, file, problem, rerun)

    def same_rows(self, stage: str, file: str, found: list, wanted: list, what: str, rerun: str = "") -> None:
        """Take down missing, unknown, doubled and misplaced keys of rows."""
        if found == wanted:
            return
        missing, unknown = set(wanted) - set(found), set(found) - set(wanted)
        if missing:
            example = sorted(missing, key=str)[0]
            self.note(stage, file, f"lacks {len(missing)} of {len(set(wanted))} {what}, as {example}", rerun)
        if unknown:
            example = sorted(unknown, key=str)[0]
            self.note(stage, file, f"has {len(unknown)} {what} that nothing asked for, as {example}", rerun)
        if not missing and not unknown:
            problem = "in another order" if len(found) == len(wanted) else f"{len(found)} instead of {len(wanted)}"
            self.note(stage, file, f"its {what} are {problem}", rerun)


def open_study(results: Path) -> Study:
    """Read a study's plan and config. Raises InputError where there is none or another version wrote it."""
    plan, path = read_plan(results), results / PLAN
    try:
        version, targets, rules, config = (plan[key] for key in ("schema_version", "targets", "rules", "config"))
        complete = all(isinstance(f, str) for files in targets.values() for f in files)
        complete = complete and all(isinstance(g, str) for rule in rules.values() for g in rule["outputs"])
    except MALFORMED:
        complete = False
    if not complete:
        raise InputError(f"{path}: not a plan of this ditscope; run the study again")
    if version != PLAN_VERSION:
        raise InputError(f"{path}: schema version {version}, this ditscope reads {PLAN_VERSION}; run the study again")
    try:
        return Study(results, plan, decode(Config, config))
    except InputError as error:
        raise InputError(f"{path}: its config is of another ditscope ({error}); run the study again") from None


def document(study: Study) -> dict[str, Any]:
    """The findings as plain data, in the order of the checks."""
    return {
        "schema_version": "1",
        "experiment": study.config.experiment,
        "findings": [asdict(finding) for finding in study.findings],
    }
