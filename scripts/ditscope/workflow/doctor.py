"""`ditscope doctor`: run every check over a study and say what to run again."""

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from ditscope.config import STAGES, Config
from ditscope.core.atomic import write_text
from ditscope.core.errors import MALFORMED, InputError, check_version
from ditscope.core.paths import InputFolder, OutputFile
from ditscope.core.settings import decode
from ditscope.core.study import Finding, Study
from ditscope.core.study_plan import PLAN, read_plan
from ditscope.workflow.inventory import MISSING, check_checksums, check_left_over, check_missing, check_tables

PLAN_VERSION = "1"


def check_of(stage: str) -> Callable[[Study], None]:
    """The check of a stage: `check_<stage>` in its own `check.py`."""
    return getattr(import_module(f"ditscope.{stage}.check"), f"check_{stage}")


CHECKS: dict[str, Callable[[Study], None]] = {
    "files": check_missing,
    "tables": check_tables,
    **{stage: check_of(stage) for stage in STAGES},
    "checksums": check_checksums,
    "leftovers": check_left_over,
}


def doctor(
    results: InputFolder, report: OutputFile | None = None, checks: list[str] | None = None, profile: str = "local"
) -> None:
    """Verify everything that a study left, and say what to run again.

    `results` is the study's folder, as results/demo. Reads every file there: expected ones exist, tables have their
    columns and rows, digests are those that were recorded, stages agree on models and settings, nothing is left over.
    `report` takes the findings as JSON, `checks` chooses some checks, `profile` is named in the commands that fix them.
    Raises InputError where anything was found.
    """
    chosen = checks or list(CHECKS)
    if unknown := set(chosen) - set(CHECKS):
        raise InputError(f"checks: `{unknown.pop()}` is not a check; valid: {', '.join(CHECKS)}")
    study = examine(results, chosen)
    commands = fixes(study, profile)
    if report:
        write_text(report, json.dumps(document(study) | {"checks": chosen, "fix": commands}, indent=1) + "\n")
    print(readable(study, chosen, commands), end="")
    if study.findings:
        raise InputError(f"{results}: {len(study.findings)} findings; the lines above say what to do")


def examine(results: Path, checks: list[str]) -> Study:
    """A study with what `checks` found in it."""
    study = open_study(results)
    for name in checks:
        CHECKS[name](study)
    return study


def fixes(study: Study, profile: str = "local") -> list[str]:
    """The commands, to be run where the workflow runs, that fix every finding, in order."""
    removed = sorted({study.prefix + f.remove for f in study.findings if f.remove})
    commands = [shlex.join(["rm", "-r", *removed])] if removed else []
    if any(f.rerun for f in study.findings):  # Snakemake makes what is missing by itself
        forced = sorted(
            {study.prefix + f.rerun for f in study.findings if f.rerun not in ("", PLAN) and f.problem != MISSING}
        )
        configs = study.plan.get("configfiles") or []
        command = ["snakemake", "--profile", profile, *(["--configfile", *configs] if configs else [])]
        commands.append(shlex.join([*command, *(["--forcerun", *forced] if forced else [])]))
    return commands


def readable(study: Study, checks: list[str], commands: list[str]) -> str:
    """The findings as lines of text."""
    if not study.findings:
        return f"{study.results}: sound ({len(checks)} checks)\n"
    lines = [line(finding) for finding in study.findings]
    return "\n".join([*lines, "", "To fix:", *(f"  {command}" for command in commands), ""])


def line(finding: Finding) -> str:
    """One finding in one line, with what fixes it where that is another file."""
    if finding.remove:
        fix = f" [remove {finding.remove}]"
    elif finding.rerun != finding.file:
        fix = f" [run again: {finding.rerun}]"
    else:
        fix = ""
    return f"{finding.stage}: {finding.file}: {finding.problem}{fix}"


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
    check_version(path, version, PLAN_VERSION, "run the study again")
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
