"""`ditscope doctor`: run every check over a study and say what to run again."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFolder, OutputFile
from ditscope.workflow.doctor.books import MISSING, check_checksums, check_left_over, check_missing, check_tables
from ditscope.workflow.doctor.calibration import check_calibrate
from ditscope.workflow.doctor.captures import check_ablate, check_blocks, check_capture
from ditscope.workflow.doctor.images import check_generate, check_prompts
from ditscope.workflow.doctor.pictures import check_publish, check_refine, check_video
from ditscope.workflow.doctor.quantization import check_benchmark, check_plan, check_sensitivity
from ditscope.workflow.doctor.study import Finding, Study, document, open_study
from ditscope.workflow.doctor.wanderings import check_analyses, check_embed, check_trajectories
from ditscope.workflow.progress import PLAN

CHECKS: dict[str, Callable[[Study], None]] = {
    "files": check_missing,
    "tables": check_tables,
    "prompts": check_prompts,
    "generate": check_generate,
    "capture": check_capture,
    "blocks": check_blocks,
    "ablate": check_ablate,
    "calibrate": check_calibrate,
    "sensitivity": check_sensitivity,
    "plan": check_plan,
    "benchmark": check_benchmark,
    "trajectories": check_trajectories,
    "embed": check_embed,
    "analyses": check_analyses,
    "refine": check_refine,
    "video": check_video,
    "publish": check_publish,
    "checksums": check_checksums,
    "leftovers": check_left_over,
}


def doctor(
    results: InputFolder, report: OutputFile | None = None, checks: list[str] | None = None, profile: str = "local"
) -> None:
    """Verify everything that a study left, and say what to run again.

    `results` is the study's folder, as results/demo. Reads every file there: expected ones exist, tables have their
    columns and rows, digests are those that were recorded, stages agree on models and settings, nothing is left over.
    `report` takes the findings as JSON, `checks` chooses some checks, `profile` is named in the commands that mend.
    Raises InputError where anything was found.
    """
    chosen = checks or list(CHECKS)
    if unknown := set(chosen) - set(CHECKS):
        raise InputError(f"checks: `{unknown.pop()}` is not a check; valid: {', '.join(CHECKS)}")
    study = examine(results, chosen)
    mends = mending(study, profile)
    if report:
        write_text(report, json.dumps(document(study) | {"checks": chosen, "mend": mends}, indent=1) + "\n")
    print(readable(study, chosen, mends), end="")
    if study.findings:
        raise InputError(f"{results}: {len(study.findings)} findings; the lines above say what to do")


def examine(results: Path, checks: list[str]) -> Study:
    """A study with what `checks` found in it."""
    study = open_study(results)
    for name in checks:
        CHECKS[name](study)
    return study


def mending(study: Study, profile: str = "local") -> list[str]:
    """The commands, to be run where the workflow runs, that mend every finding, in order."""
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


def readable(study: Study, checks: list[str], mends: list[str]) -> str:
    """The findings as lines of text."""
    if not study.findings:
        return f"{study.results}: sound ({len(checks)} checks)\n"
    lines = [line(finding) for finding in study.findings]
    return "\n".join([*lines, "", "To mend:", *(f"  {command}" for command in mends), ""])


def line(finding: Finding) -> str:
    """One finding in one line, with what mends it where that is another file."""
    if finding.remove:
        mend = f" [remove {finding.remove}]"
    elif finding.rerun != finding.file:
        mend = f" [run again: {finding.rerun}]"
    else:
        mend = ""
    return f"{finding.stage}: {finding.file}: {finding.problem}{mend}"
