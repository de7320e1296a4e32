"""A study under examination: its files, its plan, readers that record defects, and the findings."""

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ditscope.core.errors import MALFORMED, IncompleteError, InputError, machine_error, read_through
from ditscope.core.picture_file import decode_picture
from ditscope.core.schema import table_named
from ditscope.core.shards import Sample, read_tar
from ditscope.core.study_plan import files_of_stage
from ditscope.core.tables import POLARS, read_table

if TYPE_CHECKING:
    from ditscope.config import Config

# What reading a damaged or missing file of a study raises; none of the machine's errors.
DAMAGED: tuple[type[BaseException], ...] = (
    *MALFORMED, *POLARS, FileNotFoundError, NotADirectoryError, IsADirectoryError,
)  # fmt: skip
# How far a number may be from what its inputs give: another machine sums in another order. Anything that a reader
# could notice is far more.
RELATIVE, ABSOLUTE = 1e-5, 1e-7
# What is computed again from damaged parts may be refused by the check of its own tables.
READING: tuple[type[BaseException], ...] = (*DAMAGED, OSError, MemoryError, IncompleteError)


TAILS = {".jpg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82", ".gif": b";"}  # how whole pictures end
ROUNDED = 1.1e-3  # between two neighbours of four significant digits
NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?")


@dataclass(frozen=True)
class Finding:
    """One defect: where, what, and what fixes it."""

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
    config: "Config"
    findings: list[Finding] = field(default_factory=list)
    read: Callable[[Path, str], pl.DataFrame] = read_table
    computed: dict[str, Any] = field(default_factory=dict)  # what `once` gave, by name

    def once(self, name: str, compute: Callable[[], Any], files: Iterable[Path] = ()) -> Any:
        """`compute()`, remembered: what a stage's inputs give does not depend on what the stage left.

        Where it is given the stage's own parts, `files`, it is remembered until one of them is written again.
        """
        written = [(status.st_mtime_ns, status.st_ino, status.st_size) for status in map(Path.stat, files)]
        name = f"{name}, {written}" if written else name
        if name not in self.computed:
            self.computed[name] = compute()
        return self.computed[name]

    def quiet(self) -> "Study":
        """The same study, for looking at what another stage left: its own check notes the defects there."""
        return Study(self.results, self.plan, self.config, read=self.read, computed=self.computed)

    @property
    def prefix(self) -> str:
        """How the workflow names the results folder in paths of targets."""
        return f"results/{self.config.experiment}/"

    def asked(self, stage: str) -> list[str]:
        """What `all` asks a stage for, relative to the results, as the last run planned it."""
        return [target.removeprefix(self.prefix) for target in self.plan["targets"].get(stage, [])]

    def targets(self, stage: str) -> list[str]:
        """What a stage leaves: what it is asked for, and what is made of it on the way to other stages."""
        return [file.removeprefix(self.prefix) for file in files_of_stage(self.plan, stage)]

    def note(self, stage: str, file: str, problem: str, rerun: str = "") -> None:
        """Record a defect of `file`, once, that running the job of `rerun` (default: of `file`) again fixes."""
        finding = Finding(stage, file, " ".join(problem.split()), rerun or file)
        if finding not in self.findings:
            self.findings.append(finding)

    @contextmanager
    def noting(self, stage: str, file: str, rerun: str = "") -> Iterator[None]:
        """Record a refusal or an unreadable value as a defect of `file`, and go on.

        A file that the machine does not let us read (its rights, its disk) is no damaged one: nothing is to be made
        again.
        """
        try:
            yield
        except READING as error:
            if machine := machine_error(error) or machine_refuses(self.results / file):
                self.findings.append(Finding(stage, file, f"cannot be read: {machine}"))
            elif isinstance(error, InputError):
                self.note(stage, file, str(error).removeprefix(f"{self.results / file}: "), rerun)
            else:
                self.note(stage, file, f"unreadable ({type(error).__name__}: {error})", rerun)

    def table(self, stage: str, file: str, kind: str, rerun: str = "") -> pl.DataFrame | None:
        """A table as it is declared, with no NaN or infinite number; None where it is missing or was noted."""
        path = self.results / file
        if not os.path.exists(path):
            return None
        with self.noting(stage, file, rerun):
            table = self.read(path, kind)
            if fault := next(table_named(kind).faults(table), ""):
                raise InputError(fault)
            for column, dtype in table.schema.items():
                if isinstance(dtype, pl.List | pl.Array):
                    lists = table[column].cast(pl.List(dtype.inner))
                    values = lists.explode(empty_as_null=False) if dtype.inner.is_float() else None
                    if values is not None and values.null_count() > table[column].null_count():
                        raise InputError(f"column `{column}` has empty values in its lists")
                else:
                    values = table[column] if dtype.is_float() else None
                if values is not None and not values.drop_nulls().is_finite().all():
                    raise InputError(f"column `{column}` has NaN or infinite values")
            return table
        return None

    def agree(
        self,
        stage: str,
        file: str,
        table: pl.DataFrame,
        wanted: pl.DataFrame,
        rerun: str = "",
        tolerance: float = RELATIVE,
        least: float = ABSOLUTE,
    ) -> None:
        """Record every column of a table that is not what its inputs give, `wanted`, row by row.

        Numbers may differ by the part `tolerance`, or by `least`; everything else is to be equal, nulls and the order
        of rows among it.
        """
        if lacking := [name for name in wanted.columns if name not in table.columns]:
            return self.note(stage, file, f"lacks the column `{lacking[0]}`", rerun)
        if len(table) != len(wanted):
            return self.note(stage, file, f"has {len(table)} rows, its inputs give {len(wanted)}", rerun)
        for name in wanted.columns:
            given, expected = table[name], wanted[name]
            wrong = unlike_rows(given, expected, tolerance, least)
            if wrong:
                example = f"as row {wrong[0] + 1}: {short(given[wrong[0]])} instead of {short(expected[wrong[0]])}"
                problem = (
                    f"column `{name}`: {len(wrong)} of {len(table)} values are not what its inputs give, {example}"
                )
                self.note(stage, file, problem, rerun)

    def json(self, stage: str, file: str, rerun: str = "", versions: Collection[str] = ("1",)) -> dict[str, Any] | None:
        """A JSON map of one of these schema versions; None where it is missing or was noted."""
        path = self.results / file
        if not os.path.exists(path):
            return None
        with self.noting(stage, file, rerun):
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["schema_version"] not in versions:
                read = " and ".join(versions)
                raise InputError(f"schema version {document['schema_version']}, this ditscope reads {read}")
            return document
        return None

    def tar(self, stage: str, file: str) -> list[Sample] | None:
        """The samples of a shard; None where it is missing or was noted."""
        if not os.path.exists(self.results / file):
            return None
        with self.noting(stage, file):
            return list(read_tar(self.results / file))
        return None

    def same(self, stage: str, file: str, record: dict[str, Any], wanted: dict[str, Any], rerun: str = "") -> None:
        """Record every key of `wanted` that `record` has another value of."""
        for key, value in wanted.items():
            if record.get(key) != value:
                problem = f"made with {key} {record.get(key)!r}, the config says {value!r}"
                self.note(stage, file, problem, rerun)

    def same_rows(self, stage: str, file: str, rows: list, wanted: list, what: str, rerun: str = "") -> None:
        """Record missing, unknown, doubled and misplaced keys of rows."""
        if rows == wanted:
            return
        missing, unknown = set(wanted) - set(rows), set(rows) - set(wanted)
        if missing:
            example = sorted(missing, key=str)[0]
            self.note(stage, file, f"lacks {len(missing)} of {len(set(wanted))} {what}, as {example}", rerun)
        if unknown:
            example = sorted(unknown, key=str)[0]
            self.note(stage, file, f"has {len(unknown)} {what} that nothing asked for, as {example}", rerun)
        if not missing and not unknown:
            problem = "in another order" if len(rows) == len(wanted) else f"{len(rows)} instead of {len(wanted)}"
            self.note(stage, file, f"its {what} are {problem}", rerun)


def unlike_rows(a: pl.Series, b: pl.Series, tolerance: float, least: float) -> list[int]:
    """Numbers of the rows in which two columns are not `alike`."""
    if a.dtype.is_float() and b.dtype.is_numeric():
        x, y = a.to_numpy(), b.cast(pl.Float64).to_numpy()
        wrong = (a.is_null() != b.is_null()).to_numpy() | (
            abs(x - y) > np.maximum(tolerance * np.maximum(abs(x), abs(y)), least)
        )
        return np.flatnonzero(wrong).tolist()
    if isinstance(a.dtype, pl.List | pl.Array) and isinstance(b.dtype, pl.List | pl.Array):
        a, b = (lists.cast(pl.List(lists.dtype.inner)) for lists in (a, b))
        lengths = a.list.len().fill_null(-1).to_numpy(), b.list.len().fill_null(-1).to_numpy()
        if (lengths[0] != lengths[1]).any():
            return np.flatnonzero(lengths[0] != lengths[1]).tolist()
        rows = np.repeat(np.arange(len(a)), np.maximum(lengths[0], 0))
        inside = [lists.drop_nulls().explode(empty_as_null=False) for lists in (a, b)]
        return np.unique(rows[unlike_rows(inside[0], inside[1], tolerance, least)]).tolist()
    if a.dtype.is_nested() or b.dtype.is_nested() or (a.dtype != b.dtype and b.dtype.is_numeric()):
        pairs = enumerate(zip(a.to_list(), b.to_list(), strict=True))
        return [i for i, pair in pairs if not alike(*pair, tolerance, least)]
    if a.dtype != b.dtype and b.dtype != pl.Null:
        a, b = a.cast(pl.String), b.cast(pl.String)
    return (a.ne_missing(b) if b.dtype != pl.Null else a.is_not_null()).arg_true().to_list()


def alike(a: Any, b: Any, tolerance: float = RELATIVE, least: float = ABSOLUTE) -> bool:
    """Whether two values of tables or JSON are equal, numbers to within rounding."""
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a is b
    if isinstance(a, float) or isinstance(b, float):
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        return numbers and math.isclose(a, b, rel_tol=tolerance, abs_tol=least)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key], tolerance, least) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return False
        with suppress(ValueError, TypeError):  # long lists of numbers
            if None in a or None in b:
                raise TypeError
            x, y = np.array(a, np.float64), np.array(b, np.float64)
            return bool(np.allclose(x, y, rtol=tolerance, atol=least))
        return all(alike(*pair, tolerance, least) for pair in zip(a, b, strict=True))
    return bool(a == b)


def short(value: Any) -> str:
    """A value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def machine_refuses(path: Path) -> str:
    """What the machine has against reading a file; empty where it can be read, or is not there.

    Parsers hide in errors of their own what the system said to them.
    """
    try:
        if path.is_file():
            read_through(path)
    except OSError as error:
        return machine_error(error)
    return ""


def beside(tar: str) -> list[str]:
    """The manifest and the timing of a shard."""
    stem = tar.removesuffix(".tar")
    return [f"{stem}.parquet", f"{stem}.timing.parquet"]


def check_timing(study: Study, file: str, timing: pl.DataFrame, table: pl.DataFrame, model: str, tar: str) -> None:
    """Slices of a shard are timed in order, all of its images among them; runs that share an image have one of it."""
    size, images = study.config.generate.slice_size, int(timing["images"].sum() or 0)
    if images != (pictures := table["key"].n_unique()):
        study.note("generate", file, f"times {images} images of {pictures}", tar)
    counts = [min(size, images - start) for start in range(0, images, size)]
    wanted = pl.DataFrame({"model": [model] * len(counts), "slice": range(len(counts)), "images": counts})
    study.agree("generate", file, timing, wanted, tar)
    positive(study, "generate", file, timing, ["seconds"], tar)


def positive(study: Study, stage: str, file: str, table: pl.DataFrame, columns: list[str], rerun: str = "") -> None:
    """Record columns of measured times and sizes that hold nothing, or what is not above 0."""
    for name in columns:
        if not (table[name].fill_null(-1) > 0).all():
            study.note(stage, file, f"column `{name}` has values that are not above 0", rerun)


def check_picture(path: Path) -> int:
    """Decode every frame of a picture; how many they are. Raises InputError where it is damaged."""
    data = path.read_bytes()
    if not data.endswith(TAILS.get(path.suffix, b"")):  # Pillow shows pictures that lack their end
        raise InputError("not a readable picture (truncated)")
    return decode_picture(data)


def check_png(data: bytes, what: str) -> None:
    """Refuse what is not a whole PNG."""
    try:
        decode_picture(data)
        if not (data.startswith(b"\x89PNG") and data.endswith(TAILS[".png"])):
            raise InputError("truncated, or another format")
    except InputError as error:
        raise InputError(f"{what} is not a PNG ({error})") from None


def alike_text(a: str, b: str, tolerance: float = ROUNDED) -> bool:
    """Whether two texts are the same but for the last digits of their numbers."""
    if NUMBER.sub("0", a) != NUMBER.sub("0", b):
        return False
    return all(
        x == y or (set("e.") & set(x + y) and alike(float(x), float(y), tolerance, 1e-9))
        for x, y in zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    )
