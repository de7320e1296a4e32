"""A table of two experiments: its rows matched by what tells them apart, its columns compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ditscope.core.errors import InputError, parsing
from ditscope.core.tables import POLARS

SIDES = ("A", "B")
ORDER = "row in order"  # joins rows that no columns tell apart
UNKNOWN = "file "  # how the name of a file that is no table of ditscope begins


@dataclass(frozen=True)
class ColumnDifference:
    """How a column differs over the rows that both tables have.

    `largest` and `median` are of |B - A|, in the column's own unit, None where it is not of numbers; `at` is the row
    (its keys) of the largest, with both values there; `unlike` counts rows that differ.
    """

    column: str
    unlike: int
    largest: float | None = None
    median: float | None = None
    at: str = ""
    values: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class TableDifference:
    """How a table differs; `note` says why it was not compared."""

    name: str
    rows: tuple[int, int] = (0, 0)
    keys: tuple[str, ...] = ()
    only: tuple[int, int] = (0, 0)  # rows, by their keys
    columns_only: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    columns: tuple[ColumnDifference, ...] = ()
    note: str = ""

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.note or any(self.only) or any(self.columns_only) or self.columns)


def metadata_of(file: Path) -> dict[str, str]:
    """The metadata of a Parquet file; empty where it cannot be read."""
    try:
        with parsing(file, "not a readable Parquet file ({})", POLARS):
            return pl.read_parquet_metadata(file)
    except InputError:
        return {}


def compare_files(name: str, a: Sequence[Path], b: Sequence[Path]) -> TableDifference:
    """Compare a table that lies in some files on each side, if both can be read and are of one schema version."""
    if name.startswith(UNKNOWN):
        return TableDifference(name, note="cannot be read, or is no table of ditscope")
    for label, files in zip(SIDES, (b, a), strict=True):
        if not files:
            return TableDifference(name, note=f"only in {label}")
    versions = [sorted({metadata_of(file).get("schema_version", "none") for file in files}) for files in (a, b)]
    if versions[0] != versions[1]:
        both = " and ".join(f"{', '.join(v)} in {label}" for label, v in zip(SIDES, versions, strict=True))
        return TableDifference(name, note=f"not compared: schema version {both}")
    try:
        tables = [read(files) for files in (a, b)]
        with parsing(a[0], "cannot be matched with B's ({})", POLARS):
            return compare_tables(name, *tables)
    except InputError as error:
        return TableDifference(name, note=f"not compared: {error}")


def read(files: Sequence[Path]) -> pl.DataFrame:
    """The rows of files of one table, texts of fixed sets as plain text. Raises InputError for what cannot be read."""
    parts = []
    for file in files:
        with parsing(file, "damaged Parquet file ({})", POLARS):
            part = pl.read_parquet(file)
            sets = [name for name, dtype in part.schema.items() if isinstance(dtype, pl.Enum | pl.Categorical)]
            parts.append(part.with_columns(pl.col(sets).cast(pl.String)))
    with parsing(files[0], "its columns are not those of its other parts ({})", POLARS):
        return pl.concat(parts, how="diagonal_relaxed")


def compare_tables(name: str, a: pl.DataFrame, b: pl.DataFrame) -> TableDifference:
    """Match the rows of two tables by their keys, and compare every other column that both have."""
    both = [column for column in a.columns if column in b.columns]
    extra = tuple(c for c in a.columns if c not in both), tuple(c for c in b.columns if c not in both)
    keys = keys_of(a, b)
    rows = [numbered(table, keys) for table in (a, b)]
    on = [*keys, ORDER]
    joined = rows[0].join(rows[1], on=on, how="inner", nulls_equal=True, suffix=" of B", maintain_order="left")
    columns = [unlike for c in both if c not in keys and (unlike := compare_columns(joined, c, keys))]
    only = len(a) - len(joined), len(b) - len(joined)
    shown = tuple(keys) if max(row[ORDER].max() or 0 for row in rows) == 0 else (*keys, ORDER)
    return TableDifference(name, (len(a), len(b)), shown, only, extra, tuple(columns))


def keys_of(a: pl.DataFrame, b: pl.DataFrame) -> list[str]:
    """The fewest columns of text or integers that tell rows apart in both tables as well as all of them do.

    Columns whose values have nothing in common (names of other models, hashes of other weights) cannot match rows.
    Those that have little in common are left out first, then the last ones, where results stand.
    """
    kinds = (pl.String, pl.Boolean)
    shared: dict[str, float] = {}
    for column in a.columns:
        if column in b.columns and all(t[column].dtype in kinds or t[column].dtype.is_integer() for t in (a, b)):
            if (a[column].dtype in kinds or b[column].dtype in kinds) and a[column].dtype != b[column].dtype:
                continue
            values = [set(t[column].unique().to_list()) for t in (a, b)]
            if common := len(values[0] & values[1]):
                shared[column] = common / len(values[0] | values[1])
    keys = list(shared)
    distinct = [len(t.select(keys).unique()) if keys else 0 for t in (a, b)]
    for column in sorted(shared, key=lambda c: (shared[c], -a.columns.index(c))):
        rest = [key for key in keys if key != column]
        if rest and [len(t.select(rest).unique()) for t in (a, b)] == distinct:
            keys = rest
    return keys


def numbered(table: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """The table with a number for each of the rows that `keys` do not tell apart, 0 for the first."""
    number = pl.int_range(pl.len(), dtype=pl.Int64)
    return table.with_columns((number.over(keys) if keys else number).alias(ORDER))


def compare_columns(joined: pl.DataFrame, column: str, keys: Sequence[str]) -> ColumnDifference | None:
    """Compare a column of matched rows with its counterpart of B; None where no value differs."""
    a, b = joined[column], joined[f"{column} of B"]
    numbers = all(series.dtype.is_numeric() for series in (a, b))
    if a.dtype != b.dtype and not numbers:
        return ColumnDifference(column, len(joined), values=(str(a.dtype), str(b.dtype)), at="the types")
    unlike = a.ne_missing(b).fill_null(True)
    count = int(unlike.sum())
    if not count:
        return None
    largest = median = None
    row = int(unlike.arg_max() or 0)
    if numbers:
        size = pl.when(unlike).then((b.cast(pl.Float64) - a.cast(pl.Float64)).abs()).otherwise(0.0)
        sizes = joined.select(size.alias("size"))["size"].fill_nan(None)  # of a value against none there is no size
        if sizes.drop_nulls().len() and (sizes.max() or 0.0):
            row, largest, median = int(sizes.arg_max() or 0), float(sizes.max()), float(sizes.median())
    place = ", ".join(f"{key} {shown(joined[key][row])}" for key in keys)
    return ColumnDifference(column, count, largest, median, place, (shown(a[row]), shown(b[row])))


def shown(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "none" if value is None else str(value.to_list() if isinstance(value, pl.Series) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
