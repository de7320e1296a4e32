"""`ditscope experiment`: which experiments there are, how far each is, and the removal of one with all of its own."""

import json
import re
import shutil
import sys
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from ditscope.config import Config
from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.core.paths import InputFolder
from ditscope.core.settings import decode
from ditscope.core.study_plan import PLAN, read_plan
from ditscope.models.folders import source_folder
from ditscope.workflow.progress import markdown, stages_of
from ditscope.workflow.resume import main_processes, queued

ACTIONS = ("list", "status", "delete")
STUDY = re.compile(r"results/([\w.+-]+)/")  # how the workflow names files of a study


def experiment(
    action: Annotated[str, "`list`, `status` or `delete`"],
    name: Annotated[str, "of the experiment, as in results/NAME; `status` without one: all"] = "",
    /,
    results: InputFolder = Path("results"),
    yes: bool = False,
) -> None:
    """List the experiments of a results folder, say how far one is, or delete one with all that belongs to it.

    `list`: name, size, completion, when it was last run, and stages. `status`: what progress.md says. `delete` removes
    results/NAME, and what Snakemake and ditscope keep of it elsewhere: records of its files, logs of its runs, and its
    entries in the cache of parsed prompts. Models, features, compiled kernels and your own files stay, and it says so.
    It shows all of this and asks; `--yes` answers. It refuses a folder that is no experiment, and one on which a run is
    at work.
    """
    if action not in ACTIONS:
        raise InputError(unknown("action", action, ACTIONS, "of `ditscope experiment`"))
    if action == "list":
        print("\n".join(listed(results)))
    elif action == "status":
        for folder in [folder_of(results, name)] if name else folders(results):
            print(markdown(folder))
    else:
        delete(results, name, yes)


def folders(results: Path) -> list[Path]:
    """The experiments below a results folder. Raises InputError where there is none."""
    if plans := sorted(results.glob(f"*/{PLAN}")):
        return [plan.parent for plan in plans]
    raise InputError(f"{results}: no experiment has been run here yet; start one with snakemake")


def folder_of(results: Path, name: str) -> Path:
    """The folder of an experiment. Raises InputError for anything that the workflow did not make."""
    if not name:
        raise InputError("experiment: say which one, as `ditscope experiment delete NAME`; `list` shows them")
    folder = results / name
    if name != Path(name).name or name in (".", ".."):
        raise InputError(f"{name}: no name of an experiment; give the folder's name below {results}")
    if folder.is_symlink():
        raise InputError(f"{folder}: a link to {folder.resolve()}; give --results as the folder that the study lies in")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such experiment; `ditscope experiment list` shows them")
    config = read_plan(folder).get("config")
    if not isinstance(config, dict) or config.get("experiment") != name:
        raise InputError(f"{folder / PLAN}: is not the plan of an experiment `{name}`; nothing was touched")
    return folder


# List -------------------------------------------------------------------------------------------------------------


def listed(results: Path) -> list[str]:
    """A line for each experiment, under a line of headings; last, the folders that are none."""
    rows = [("experiment", "size", "complete", "last run", "stages")]
    for folder in folders(results):
        stages = stages_of(folder)
        expected = sum(stage.expected for stage in stages)
        missing = sum(len(stage.missing) for stage in stages)
        share = f"{100 * (expected - missing) / expected:.0f} %" if expected else "100 %"
        asked = ", ".join(stage for stage, files in read_plan(folder)["targets"].items() if files)
        rows.append((folder.name, human(size_of(folder)), share, last_run(folder), asked))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    others = [f"{path.name}/" for path in sorted(results.iterdir()) if path.is_dir() and not (path / PLAN).exists()]
    return [*lines, *([f"no experiments: {', '.join(others)}"] if others else [])]


def last_run(folder: Path) -> str:
    """When an experiment was last run: its progress is written as a run ends, its plan as the first one starts."""
    times = [path.stat().st_mtime for path in (folder / PLAN, folder / "progress.md") if path.exists()]
    return datetime.fromtimestamp(max(times)).strftime("%Y-%m-%d %H:%M")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; links count as links."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_symlink() or not file.is_dir())


def human(size: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# Delete -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Belongings:
    """What of the project is one experiment's: what goes with it, and what stays, each with the reason."""

    folder: Path
    removed: list[tuple[str, list[Path]]]  # what they are, and files or folders outside `folder`
    kept: list[str]


def delete(results: Path, name: str, yes: bool) -> None:
    """Delete an experiment, after saying what goes and what stays."""
    folder = folder_of(results, name)
    refuse_running(folder)
    owned = belongings(folder)
    print(f"{folder}: {human(size_of(folder))}")
    for what, paths in owned.removed:
        if paths:
            print(f"{what}: {len(paths)} files, {human(sum(map(size_of, paths)))}")
    print("\n".join(owned.kept))
    if not yes and not agreed(f"Delete the experiment {name}? Type its name: ", name):
        raise InputError(f"{folder}: nothing was deleted; type its name, or give --yes")
    refuse_running(folder)  # one that began in the meantime
    remove(owned)
    print(f"deleted {name}")


def agreed(question: str, answer: str) -> bool:
    """Whether the user types the answer; without a terminal nobody does."""
    if not sys.stdin.isatty():
        return False
    return input(question).strip() == answer


def refuse_running(folder: Path) -> None:
    """Raise InputError while a run holds the lock of an experiment's files, or has jobs in SLURM's queue."""
    project, name = folder.absolute().parent.parent, folder.name
    locks = {file: file.read_text().split("\n") for file in sorted((project / ".snakemake/locks").glob("*.lock"))}
    held = [file for file, paths in locks.items() if any(of_study(path, name) for path in paths)]
    alive = main_processes(project)
    if held and alive:
        raise InputError(f"{folder}: a run is at work on it (process {', '.join(map(str, alive))}); end it first")
    if held:
        raise InputError(
            f"{folder}: a run that was killed left its lock ({held[0]}); `ditscope resume` goes on with it, "
            "`snakemake --unlock` with its --configfile takes the lock away"
        )
    if alive and not locks:
        raise InputError(f"{folder}: a run is starting in {project} (process {alive[0]}); wait, or end it")
    on_slurm = shutil.which("squeue") and (project / ".snakemake/slurm_logs").is_dir()
    if on_slurm and (jobs := queued(project)):
        raise InputError(f"{folder}: jobs {' '.join(jobs)} of a run are in SLURM's queue; `scancel` them, or wait")


def of_study(path: str, name: str) -> bool:
    """Whether a path, as the workflow writes it, is an experiment's folder or below it."""
    return path == f"results/{name}" or path.startswith(f"results/{name}/")


def belongings(folder: Path) -> Belongings:
    """What of a project belongs to an experiment."""
    project, name = folder.absolute().parent.parent, folder.name
    state = project / ".snakemake"
    logs, shared = logs_of(state, name)
    records = [record for kind in ("metadata", "incomplete") for record in records_of(state / kind, name)]
    removed = [
        ("Snakemake's records of its files", records),
        ("logs of its runs in .snakemake", logs),
        ("Snakemake's table of file times, and scripts of jobs that were killed", leavings_of(state, name)),
        ("its prompts as they were parsed, in resources/.cache", parsed_of(project / "resources/.cache", name)),
    ]  # fmt: skip
    kept = [f"stays: {file}: also of a run of {others}" for file, others in shared]
    kept += [f"stays: {path}: a downloaded model; {why}" for path, why in models_of(folder)]
    kept += [f"stays: {path}: {why}" for path, why in KEPT if (project / path).exists()]
    kept += [f"reads from it, and cannot be made again without it: {path}" for path in readers_of(folder)]
    return Belongings(folder, removed, kept)


KEPT = (
    ("resources/.cache", "features, kernels and digests by content, of all experiments; `clean-caches` removes it"),
    ("experiments", "overlays and prompts are your own files"),
    (".snakemake/conda", "environments of all experiments; `snakemake --conda-cleanup-envs` removes unused ones"),
)  # fmt: skip


def records_of(folder: Path, name: str) -> Iterator[Path]:
    """Snakemake's records of an experiment's files: their names are base64 of the path, cut into folders `@...`."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            text = "".join(part.removeprefix("@") for part in file.relative_to(folder).parts)
            with suppress(Base64Error, UnicodeDecodeError):
                if of_study(urlsafe_b64decode(text).decode(), name):
                    yield file


def logs_of(state: Path, name: str) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Logs of runs and of SLURM jobs that name files of this experiment alone; and those that name others' too."""
    alone, shared = [], []
    for file in sorted(path for part in ("log", "slurm_logs") for path in (state / part).rglob("*.log")):
        named = named_in(file)
        if named == {name}:
            alone.append(file)
        elif name in named:
            shared.append((file, ", ".join(sorted(named - {name}))))
    return alone, shared


def leavings_of(state: Path, name: str) -> list[Path]:
    """Snakemake's remembered times of files, made anew at each run, and scripts of jobs of this experiment alone."""
    times = [file for file in sorted(state.glob("iocache/*")) if name in named_in(file)]
    kept = [path for part in ("scripts", "auxiliary") for path in sorted((state / part).rglob("*")) if path.is_file()]
    return [*times, *(file for file in kept if named_in(file) == {name})]


def named_in(file: Path) -> set[str]:
    """The experiments whose results a file of Snakemake's names."""
    return set(STUDY.findall(file.read_text(encoding="utf-8", errors="replace")))


def parsed_of(cache: Path, name: str) -> list[Path]:
    """Entries of the project's cache that hold an experiment's parsed prompts, or digests of its files."""
    entries = []
    for file in sorted(cache.glob("*.json")):
        with suppress(ValueError, OSError):
            entry = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(entry, dict) and belongs(entry.get("key"), name):
                entries.append(file)
    return entries


def belongs(key: Any, name: str) -> bool:
    """Whether the key of a cached value is an experiment's: its prompts under its name, or files of its results.

    Prompts are keyed by digests of the CSV and of the code, the settings and the experiment (rules/common.smk); a
    digest of files by [path, size, time] of each.
    """
    if not isinstance(key, list):
        return False
    prompts = len(key) > 3 and isinstance(key[2], dict) and key[3] == name
    return prompts or any(isinstance(part, list) and part and of_study(str(part[0]), name) for part in key)


def models_of(folder: Path) -> list[tuple[Path, str]]:
    """Downloaded models that the experiment uses, and who else does."""
    used = {path.parent.name: downloads(path) for path in folder.parent.glob(f"*/{PLAN}")}
    project = folder.absolute().parent.parent
    kept = []
    for model in sorted(used[folder.name]):
        others = [name for name, models in used.items() if model in models and name != folder.name]
        who = f"{', '.join(others)} use it too" if others else "no other experiment uses it: remove it if you like"
        if (project / model).exists():
            kept.append((model, who))
    return kept


def downloads(plan: Path) -> set[Path]:
    """Folders of the models of the hub that an experiment's config names for its stages."""
    try:
        config = decode(Config, read_plan(plan.parent)["config"])
    except (InputError, KeyError):  # of another ditscope
        return set()
    entries = [config.models[name] for name in config.selected_models()]
    entries += [config.embedders[name] for name in config.embed.embedders]
    return {source_folder(entry) for entry in entries if entry.revision}


def readers_of(folder: Path) -> list[Path]:
    """Plans of other experiments whose config names files of this one."""
    others = [plan for plan in sorted(folder.parent.glob(f"*/{PLAN}")) if plan.parent != folder]
    return [plan for plan in others if f'"results/{folder.name}/' in json.dumps(read_plan(plan.parent).get("config"))]


def remove(owned: Belongings) -> None:
    """Remove an experiment. What tells that it is one goes last, so that an interrupted removal can be repeated."""
    for _, paths in owned.removed:
        for path in paths:
            path.unlink(missing_ok=True)
            for parent in path.parents:  # of long names: folders of their pieces
                if not parent.name.startswith("@") or any(parent.iterdir()):
                    break
                parent.rmdir()
    for path in sorted(owned.folder.iterdir()):
        if path.name == PLAN:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (owned.folder / PLAN).unlink()
    owned.folder.rmdir()
