"""How complete each study is, from the plan that its last run left and the files that exist now."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditscope.core.atomic import write_text
from ditscope.core.checksums import record_checksums
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFolder
from ditscope.core.scratch import require_writable
from ditscope.core.study_plan import PLAN, files_of_stage, read_plan


@dataclass(frozen=True)
class Stage:
    """Files that a stage leaves, and those of them that exist."""

    name: str
    expected: int
    missing: tuple[str, ...]

    @property
    def percent(self) -> float:
        """Completed share in percent."""
        return 100.0 * (self.expected - len(self.missing)) / self.expected if self.expected else 100.0


def write_plan(
    results: Path | str,
    targets: dict[str, list[str]],
    rules: dict[str, dict],
    config: dict,
    files: Sequence[Path] = (),
    upstream: Mapping[str, list[str]] | None = None,
) -> None:
    """Keep what a study will leave, by stage and by rule, its whole config and the config files it was run with.

    `upstream` has files of stages that are not asked for, which are made on the way to the `targets`.
    """
    path = Path(results) / PLAN
    require_writable(path)
    made = {stage: paths for stage, paths in (upstream or {}).items() if paths}
    plan = {"schema_version": "1", "targets": targets, "upstream": made, "rules": rules, "config": config}
    text = json.dumps(plan | {"configfiles": [os.path.relpath(file) for file in files]}, indent=1)
    if not path.exists() or path.read_text() != text:
        write_text(path, text)
    record_checksums(path.parent, "plan", [path])


def stages_of(results: Path | str) -> list[Stage]:
    """Completion of each stage of a study, also of those that are only on the way to what it asks for."""
    plan, project = read_plan(results), Path(results).parent.parent
    targets = {name: files_of_stage(plan, name) for name in plan["targets"]}
    return [
        Stage(name, len(files), tuple(file for file in files if not (project / file).exists()))
        for name, files in targets.items()
        if files
    ]


def markdown(results: Path | str, failed: str = "") -> str:
    """The progress of a study in the five sections: overall, completed, status, issues, next steps."""
    stages = stages_of(results)
    expected = sum(stage.expected for stage in stages)
    missing = sum(len(stage.missing) for stage in stages)
    overall = 100.0 * (expected - missing) / expected if expected else 100.0
    open_stages = [stage for stage in stages if stage.missing]
    lines = [
        f"# Progress: {Path(results).name}",
        "",
        f"## Overall progress: {overall:.0f} %",
        "",
        "### Completed tasks",
        "",
    ]
    for stage in stages:
        done = stage.expected - len(stage.missing)
        lines.append(
            f"- [{' ' if stage.missing else 'x'}] {stage.name}: {done} of {stage.expected} ({stage.percent:.0f} %)"
        )
    status = f"{expected - missing} of {expected} results exist." if missing else "Every result exists."
    lines += ["", "### Current status", "", status, "", "### Issues / blockers", ""]
    lines += [
        f"The last run failed: see {failed}." if failed else "None seen by the last run.",
        "",
        "### Next steps",
        "",
    ]
    if open_stages:
        lines.append(f"Run the study again; next is {open_stages[0].name}: `{open_stages[0].missing[0]}`.")
    else:
        lines.append("Read the report and the figures.")
    return "\n".join([*lines, ""])


def write_progress(results: Path | str, failed: str = "") -> None:
    """Write progress.md beside the results of a study; a full disk, which ended the run, must not hide its reason."""
    try:
        write_text(Path(results) / "progress.md", markdown(results, failed), shared=True)
    except OSError as error:
        print(f"{results}/progress.md: not written ({error.strerror})", file=sys.stderr)


def progress(results: InputFolder = Path("results")) -> None:
    """Print how complete every study under a results folder is, and write each one's progress.md."""
    plans = sorted(results.glob(f"*/{PLAN}"))
    if not plans:
        raise InputError(f"{results}: no study has been run here yet; start one with snakemake")
    for plan in plans:
        write_progress(plan.parent)
        print(markdown(plan.parent))
