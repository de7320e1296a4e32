"""Two finished experiments: what each has run, and which of its settings, tables and figures differ."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditscope.config import Config
from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.core.settings import decode
from ditscope.core.study_plan import PLAN, read_plan
from ditscope.publish.catalog import table_files
from ditscope.workflow.compare.tables import SIDES, UNKNOWN, TableDifference, compare_files, metadata_of

PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}  # what a page can show, the first that is there
ABSENT = object()


@dataclass(frozen=True)
class Side:
    """One of the two experiments: its folder, and what its last run planned."""

    label: str
    folder: Path
    plan: dict[str, Any]

    @property
    def experiment(self) -> str:
        """The name in its config; the folder may have been copied under another."""
        return str(self.plan["config"].get("experiment", self.folder.name))

    def targets(self) -> dict[str, list[Path]]:
        """What each stage is to leave, below this folder wherever it was made."""
        prefix = f"results/{self.experiment}/"
        planned = self.plan["targets"].items()
        return {stage: [self.folder / file.removeprefix(prefix) for file in files] for stage, files in planned}

    def missing(self) -> dict[str, str]:
        """Stages that are not finished, with how much of them is missing."""
        lacking = {stage: sum(not path.exists() for path in paths) for stage, paths in self.targets().items()}
        return {s: f"{n} of {len(self.targets()[s])} results are missing" for s, n in lacking.items() if n}


@dataclass(frozen=True)
class Figure:
    """A figure by its name, with its file on each side, None where there is none."""

    name: str
    files: tuple[Path | None, Path | None]

    @property
    def same(self) -> bool:
        """Whether both files are there, and equal byte for byte."""
        a, b = self.files
        return a is not None and b is not None and a.read_bytes() == b.read_bytes()


@dataclass(frozen=True)
class Comparison:
    """How two experiments differ; a setting that one side has not is None there."""

    sides: tuple[Side, Side]
    settings: list[tuple[str, str | None, str | None]]
    tables: list[TableDifference]
    figures: list[Figure]

    @property
    def same(self) -> bool:
        """Whether nothing differs, durations apart."""
        tables = all(table.same for table in self.tables if not is_timing(table))
        return not self.settings and tables and all(figure.same for figure in self.figures)


def study_folder(name: str) -> Path:
    """The results of an experiment that is named, or whose folder is. Raises InputError where there are none."""
    for folder in (Path(name).expanduser(), Path("results") / name):
        if (folder / PLAN).is_file():
            return folder
    known = [plan.parent.name for plan in Path("results").glob(f"*/{PLAN}")]
    raise InputError(unknown("compare", name, known, "a results folder, nor the name of one below results/"))


def comparison(a: Path, b: Path) -> Comparison:
    """Compare the results folders of two experiments."""
    plans = [read_plan(folder) for folder in (a, b)]
    for folder, plan in zip((a, b), plans, strict=True):
        if not isinstance(plan.get("config"), dict):
            raise InputError(f"{folder / PLAN}: has no config; run the study again, which writes it anew")
    left, right = (Side(*args) for args in zip(SIDES, (a, b), plans, strict=True))
    files = [tables_by_name(side) for side in (left, right)]
    tables = [compare_files(name, *(f.get(name, []) for f in files)) for name in sorted({*files[0], *files[1]})]
    return Comparison((left, right), compare_settings(left, right), tables, compare_figures(left, right))


def is_timing(table: TableDifference) -> bool:
    """Whether a table holds durations, which differ from run to run."""
    return table.name.endswith(".timing")


def compare_settings(a: Side, b: Side) -> list[tuple[str, str | None, str | None]]:
    """Settings that differ, as (key, A, B), but for the experiments' names."""
    values = [dict(flat(settings_of(side))) for side in (a, b)]
    keys = dict.fromkeys([*values[0], *values[1]])
    pairs = [(key, values[0].get(key, ABSENT), values[1].get(key, ABSENT)) for key in keys if key != "experiment"]
    return [(key, said(left), said(right)) for key, left, right in pairs if left != right]


def said(value: Any) -> str | None:
    """A setting as text; None where it is not there."""
    return None if value is ABSENT else str(value)


def settings_of(side: Side) -> dict[str, Any]:
    """A study's config with the defaults of what it does not name; as it stands, where another ditscope wrote it."""
    try:
        return asdict(decode(Config, side.plan["config"]))
    except InputError:
        return dict(side.plan["config"])


def flat(settings: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{where}{key}.")
        elif not isinstance(value, Mapping):
            yield f"{where}{key}", value


def tables_by_name(side: Side) -> dict[str, list[Path]]:
    """The files of each table of an experiment that are there, by the table's name; without one by their path."""
    paths = map(Path, table_files(side.targets()))
    files = [file for path in paths for file in (sorted(path.rglob("*.parquet")) if path.is_dir() else [path])]
    named: dict[str, list[Path]] = {}
    for file in files:
        if file.is_file():
            named.setdefault(
                metadata_of(file).get("table", f"{UNKNOWN}{file.relative_to(side.folder)} of {side.label}"), []
            ).append(file)
    return named


def compare_figures(a: Side, b: Side) -> list[Figure]:
    """The figures of both, in the order in which A, then B, draws them."""
    drawn = [pictures(side) for side in (a, b)]
    return [Figure(name, (drawn[0].get(name), drawn[1].get(name))) for name in dict.fromkeys([*drawn[0], *drawn[1]])]


def pictures(side: Side) -> dict[str, Path]:
    """The figures of an experiment by name, each in a format that a page can show."""
    figures: dict[str, Path] = {}
    for kind in PICTURES:
        for file in side.targets().get("publish", []):
            if file.suffix == kind and file.parent.name == "figures" and file.is_file():
                figures.setdefault(file.stem, file)
    return figures
