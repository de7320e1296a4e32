"""An interactive page over a study, in one file that works without a network: the front-end of `explorer/` with data.

The page is built from `explorer/` at the root of the repository (`make explorer`) to `explorer.html` beside this
module; here it gets the study's tables, thumbnails of its pictures, its settings and where they come from.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ditscope import __version__
from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError, read_json
from ditscope.publish.explorer_pictures import (
    Source,
    ablation_sources,
    benchmark_sources,
    capture_sources,
    captures,
    image_sources,
    refiner_sources,
    state_sources,
    thumbnails,
)
from ditscope.publish.explorer_tables import MOST_ROWS, Gathered, gather, packed_tables
from ditscope.publish.settings import Publish
from ditscope.publish.tables import ANSWERS
from ditscope.style import COLOURS, Files

PAGE = Path(__file__).with_name("explorer.html")
PLACE = '<script type="application/json" id="{}">'  # of the data in the page, which are put in before its end
TABLES_SHARE, LEAST_ROWS = 0.6, 1_000  # of the bytes for data, for tables; rows that each of them keeps in any case
# Which stages each stage reads: the arrows between them in the page.
READS = {
    "prompts": (),
    "generate": ("prompts",),
    "capture": ("prompts",),
    "blocks": ("capture",),
    "ablate": ("prompts",),
    "calibrate": ("prompts",),
    "sensitivity": ("calibrate",),
    "plan": ("sensitivity",),
    "benchmark": ("prompts", "plan"),
    "trajectories": ("prompts", "plan"),
    "embed": ("trajectories",),
    "drift": ("trajectories", "embed"),
    "cluster": ("trajectories", "embed"),
    "topology": ("trajectories", "embed"),
    "refine": ("generate",),
    "video": ("capture", "trajectories", "drift"),
    "analyse": (),
}


@dataclass(frozen=True)
class Study:
    """What a page is about: what the config says, and the files that each stage leaves, there or not."""

    config: dict[str, Any] = field(default_factory=dict)
    configfiles: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()  # stages of this study
    beside: tuple[str, ...] = ()  # files to open from the page, by their paths below the results


def write_explorer(files: Files, out: Path, study: Study = Study(), most_bytes: int = Publish.explorer_bytes) -> None:
    """Write one page of a study's finished stages; what is missing is said in it, with the command that makes it.

    `files` are what the stages leave, there or not. Equal files give equal bytes, at most `most_bytes` where the tables
    alone are not more.
    """
    page, most_rows = PAGE.read_text(encoding="utf-8"), MOST_ROWS
    problems: dict[str, list[str]] = {}
    told = captures(files.get("capture", []), problems.setdefault("capture", []))
    made = list(plans(files.get("plan", []), problems.setdefault("plan", [])))
    shown = list(sources(files, told, problems))
    while True:
        gathered = gather(files, most_rows)
        text = compact(data_of(files, study, gathered, problems, told, made))
        if len(text.encode()) <= TABLES_SHARE * (most_bytes - len(page)) or most_rows <= LEAST_ROWS:
            break
        most_rows //= 2
    left = most_bytes - sum(map(len, (page.encode(), text.encode(), *(source.name.encode() for source in shown))))
    pictures = thumbnails(shown, max(left - 16 * len(shown), 0))  # a place takes its name and some letters
    write_text(out, filled(page, {"study": text, "pictures": compact(asdict(pictures))}))


def data_of(
    files: Files,
    study: Study,
    gathered: Gathered,
    problems: dict[str, list[str]],
    told: list[dict[str, Any]],
    made: list[dict[str, Any]],
) -> dict[str, Any]:
    """All that the page has but pictures."""
    stages_with = {*problems, *gathered.problems}
    return {
        "experiment": study.config.get("experiment", ""),
        "version": __version__,
        "palette": list(COLOURS),
        "config": study.config,
        "configfiles": list(study.configfiles),
        "stages": stages(files, study),
        "captures": [{key: value for key, value in one.items() if key != "folder"} for one in told],
        "plans": made,
        "tables": packed_tables(gathered.tables),
        "problems": {name: [*problems.get(name, []), *gathered.problems.get(name, [])] for name in sorted(stages_with)},
        "sampled": gathered.sampled,
        "beside": list(study.beside),
    }


def compact(data: dict[str, Any]) -> str:
    """Data as JSON without blanks."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str)


def filled(page: str, data: dict[str, str]) -> str:
    """The page with JSON texts in their scripts; every `<` as \\u003c, so that no prompt can close one."""
    for name, text in data.items():
        start = PLACE.format(name)
        if page.count(start) != 1:
            raise RuntimeError(f"{PAGE.name} has not one place for `{name}`; build it again with `make explorer`")
        page = page.replace(start, start + text.replace("<", "\\u003c"))
    return page


def sources(files: Files, told: list[dict[str, Any]], problems: dict[str, list[str]]) -> Iterator[Source]:
    """Every picture that the page can show; what cannot be read is a problem of its stage."""
    yield from capture_sources(told)
    readers = {
        "ablate": ablation_sources,
        "benchmark": benchmark_sources,
        "trajectories": state_sources,
        "refine": refiner_sources,
        "generate": image_sources,
    }
    for stage, read in readers.items():
        try:
            yield from read(files.get(stage, []))
        except InputError as error:
            problems.setdefault(stage, []).append(str(error))


def stages(files: Files, study: Study) -> list[dict[str, Any]]:
    """Each stage: whether the study asks for it, how many of its files are there, what it reads, how it is made."""
    overlay = ["--configfile", *study.configfiles] if study.configfiles else []
    return [
        {
            "name": name,
            "asked": name in (study.asked or files),
            "files": len(files.get(name, [])),
            "there": sum(path.exists() for path in files.get(name, [])),
            "reads": list(reads),
            "command": shlex.join(["snakemake", "--profile", "local", *overlay, "--", name]),
        }
        for name, reads in READS.items()
    ]


def plans(files: list[Path], problems: list[str]) -> Iterator[dict[str, Any]]:
    """The study's bit plans, as they were written."""
    for path in filter(Path.exists, files):
        try:
            yield read_json(path, "not a bit plan in JSON; run the stage `plan` again")
        except InputError as error:
            problems.append(str(error))


def study_of(plan: dict[str, Any]) -> tuple[Files, Study]:
    """What the stages leave, there or not, and what the page is about, from the plan that the workflow wrote."""
    targets, config = plan["targets"], plan["config"]
    files = {stage: [Path(path) for path in paths if shown(stage, path)] for stage, paths in targets.items()}
    asked = config.get("stages") or list(targets)
    results = f"results/{config.get('experiment')}/"
    left = [path for stage in ("publish", "refine", "video") for path in targets.get(stage, [])]
    beside = ["report.html", *(path.removeprefix(results) for path in left if may_be_opened(path))]
    return files, Study(config, tuple(plan.get("configfiles", ())), tuple(asked), tuple(beside))


def shown(stage: str, path: str) -> bool:
    """Whether the page reads a file that a stage leaves: of what is published, the answers alone."""
    return stage != "publish" or path.endswith(ANSWERS.file)


def may_be_opened(path: str) -> bool:
    """Whether a browser shows a file that a stage leaves, and it is not the page itself."""
    return path.endswith((".html", ".svg", ".csv", ".md")) and not path.endswith("/explorer.html")
