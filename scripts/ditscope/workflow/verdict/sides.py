"""The runs of the benchmark that a verdict sets against each other, and what both are measured against."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditscope.benchmark.images import Images, check_batch, read_images
from ditscope.benchmark.quality import check_match, missing_images
from ditscope.config import Config
from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.core.settings import decode
from ditscope.core.study_plan import PLAN, read_plan
from ditscope.core.tables import read_table
from ditscope.workflow.compare.experiments import study_folder

SYNTAX = "EXPERIMENT:MODEL/SCHEME, EXPERIMENT:MODEL/SCHEME/COMPILE or the table of a run, a file *.parquet"


@dataclass(frozen=True)
class Run:
    """A run of the benchmark: its table `benchmark.run`, the row in it, and how the user named it."""

    label: str
    path: Path
    row: dict[str, Any]

    @property
    def name(self) -> str:
        """Model, scheme and, where it is compiled, compile state."""
        state = "" if self.row["compile"] == "eager" else f"/{self.row['compile']}"
        return f"{self.row['model']}/{self.row['scheme']}{state}"

    @property
    def is_base(self) -> bool:
        """Whether it is what the benchmark compares with: the base scheme in eager mode."""
        return self.row["kind"] == "base" and self.row["compile"] == "eager"


@dataclass(frozen=True)
class Sides:
    """Two runs and the eager base of A, with the pictures of each by (prompt_id, seed)."""

    a: Run
    b: Run
    base: Run
    images: tuple[Images, Images, Images]

    @property
    def perfect(self) -> str:
        """Which side is the base itself, so that it equals what it is measured against: `A`, `B` or neither."""
        return next((s for s, run in (("A", self.a), ("B", self.b)) if run.path.samefile(self.base.path)), "")


def sides_of(a: str, b: str) -> Sides:
    """The two runs that are named and A's base.

    Raises InputError where one is none or has no pictures, where both are one run, and where their pictures are not
    pairs: other prompts, seeds, steps, guidance, size, model or batch.
    """
    left, right = run_of("A", a), run_of("B", b)
    if left.path.samefile(right.path):
        raise InputError(f"A and B are the same run, {left.path}; name two")
    base = base_of(left)
    for run in (left, right, base):
        if reason := missing_images(run.row):
            raise InputError(f"{run.path}: it has no pictures: {reason}")
    images = tuple(read_images(run.path) for run in (left, right, base))
    for run, made in zip((left, right), images, strict=False):
        check_batch(base.row, run.row["quality_batch"], base.path)
        check_match(run.path, made, base.path, images[2])
    if len({sample["json"]["prompt"] for sample in images[0].values()}) < 2:
        raise InputError(
            f"{left.path}: pictures of one prompt say nothing about another; benchmark more prompts (`num_images`)"
        )
    return Sides(left, right, base, (images[0], images[1], images[2]))


def run_of(side: str, text: str) -> Run:
    """The run that a side of the command names."""
    if text.endswith(".parquet"):
        path = Path(text).expanduser()
        if not path.is_file():
            raise InputError(f"{side}: no file {path}; give {SYNTAX}")
        return Run(text, path, read_table(path, "benchmark.run").row(0, named=True))
    experiment, colon, name = text.rpartition(":")
    if not colon or not name:
        raise InputError(f"{side}: `{text}` names no run; give {SYNTAX}")
    runs = list(runs_in(study_folder(experiment)))
    found = [run for run in runs if name in (run.name, f"{run.name}/eager", f"{run.row['scheme']}")]
    exact = [run for run in found if name != run.row["scheme"] or run.row["compile"] == "eager"]
    if not exact:
        raise InputError(unknown(side, name, [run.name for run in runs], f"a run of the benchmark of {experiment}"))
    if len(exact) > 1:
        raise InputError(f"{side}: `{text}` is several runs; give one of {', '.join(str(run.path) for run in exact)}")
    return Run(text, exact[0].path, exact[0].row)


def runs_in(folder: Path) -> Iterator[Run]:
    """The benchmark's runs in a study's results."""
    for path in sorted(folder.glob("benchmarks/*/*/*-*.parquet")):
        if not path.name.endswith((".timing.parquet", ".flat.parquet")):
            yield Run(str(path), path, read_table(path, "benchmark.run").row(0, named=True))


def base_of(run: Run) -> Run:
    """The eager base beside a run, which its fidelity is measured against."""
    for path in sorted(run.path.parent.glob("*-eager.parquet")):
        base = Run(str(path), path, read_table(path, "benchmark.run").row(0, named=True))
        if base.is_base and base.row["model"] == run.row["model"]:
            return base
    raise InputError(f"{run.path.parent}: no run of the base scheme in eager mode to measure against; benchmark it too")


def config_beside(run: Run) -> Config | None:
    """The config of the study that a run lies in; None where it lies in none, or in one of another ditscope."""
    study = next((parent for parent in run.path.absolute().parents if (parent / PLAN).is_file()), None)
    if study is None:
        return None
    try:
        return decode(Config, read_plan(study)["config"])
    except (InputError, KeyError):
        return None
