"""Schemas of tables: what each table is declared to hold, found by its name, and whether a frame fits.

Light on purpose: the rules read the declarations at every parse, so polars is imported where a frame is at hand.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ditscope.core.errors import InputError

if TYPE_CHECKING:
    import polars as pl

# The stage that declares the tables whose names begin so.
STAGE_OF = {
    "prompts": "prompts", "images": "generate", "capture_statistics": "capture",
    "capture_frames": "capture", "blocks": "blocks",
    "ablation": "ablate", "calibration": "calibrate", "sensitivity": "sensitivity", "benchmark": "benchmark",
    "trajectories": "trajectories", "embeddings": "embed", "drift": "drift", "clusters": "cluster",
    "topology": "topology", "analysis": "analyse", "refine": "refine", "answers": "publish",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column: its type by polars' name (`List(Float32)`, `Enum(early, late)`; `*`: any), its unit or meaning.

    A `nullable` column may hold nothing in places; an `optional` one may be absent.
    """

    type: str
    meaning: str
    nullable: bool = False
    optional: bool = False

    def dtype(self) -> Any:
        """The polars type."""
        return polars_type(self.type)


@dataclass(frozen=True)
class Table:
    """A table: where its files lie below the results, what one row is, its columns and its primary key.

    A name of `columns` with a `*` stands for any number of columns, and one of a table for any number of tables, whose
    names come from the config.
    """

    name: str
    file: str  # with `*` for what differs between files; empty for unfinished work
    row: str
    key: tuple[str, ...]
    columns: Mapping[str, Column]
    parts: str = ""  # other files of the same table: parts that a later job joins, or slices
    # What each `*` of `file` is, where no column says it and files of all together would have one key; else empty.
    places: tuple[str, ...] = ()
    joined: str = ""  # the table that a later job joins its rows into

    @property
    def stem(self) -> str:
        """The file's name without its extension."""
        return PurePath(self.file).stem

    def schema(self, optional: bool = False) -> dict[str, Any]:
        """Names and polars types of the columns that every frame has, in order; with the `optional` ones, if wished."""
        known = self.columns.items()
        return {name: c.dtype() for name, c in known if (optional or not c.optional) and "*" not in name}

    def column(self, name: str) -> Column | None:
        """The declaration of a column, by its name or else by a pattern."""
        pattern = next((p for p in self.columns if "*" in p and fnmatchcase(name, p)), "")
        return self.columns.get(name) or self.columns.get(pattern)

    def faults(self, frame: "pl.DataFrame") -> Iterator[str]:
        """What of a frame does not fit: columns, types, nulls, and, where the columns are there, the key."""
        needed = self.schema()
        yield from (f"lacks the column `{name}`" for name in needed if name not in frame.columns)
        for name, dtype in frame.schema.items():
            column = self.column(name)
            if column is None:
                yield f"has a column `{name}` that the table `{self.name}` does not declare"
            elif column.type != "*" and dtype != column.dtype():
                yield f"column `{name}` is {dtype}, not {column.type}"
            elif not column.nullable and (count := frame[name].null_count()):
                row = frame[name].is_null().arg_true()[0]
                yield f"column `{name}` holds nothing in {count} rows, as row {row + 1}"
        if self.key and set(self.key) <= set(frame.columns):
            doubled = frame.select(self.key).is_duplicated()
            if doubled.any():
                row = doubled.arg_true()[0]
                values = ", ".join(map(str, frame.select(self.key).row(row)))
                yield f"has rows of one key ({', '.join(self.key)}) twice, as row {row + 1}: {values}"


def one_of(values: Iterable[str]) -> str:
    """The type of a column that holds one of `values`, in their order."""
    return f"Enum({', '.join(values)})"


def polars_type(text: str) -> Any:
    """The polars type that `text` names."""
    import polars as pl

    outer, _, inner = text.removesuffix(")").partition("(")
    if outer == "Enum":
        return pl.Enum(inner.split(", "))
    return pl.List(polars_type(inner)) if outer == "List" else getattr(pl, outer)


def tables_of(stage: str) -> list[Table]:
    """The tables that a stage declares, in order."""
    members = vars(import_module(f"ditscope.{stage}.tables")).values()
    return [table for table in members if isinstance(table, Table)]


def tables_with(stage: str, file: str, joined: bool = True) -> list[str]:
    """Files of the tables that a job of a stage leaves with `file`: declared alike up to the last name in their path.

    `joined=False` leaves out those whose rows a later job joins into another table.
    """
    stem = re.sub(r"(\.timing)?\.(tar|parquet)$", "", file)
    bases = [stem, *map(str, PurePath(stem).parents)]
    left = []
    for table in tables_of(stage) if stage in STAGE_OF.values() else []:
        start, star, ending = table.file.rpartition("*")
        pattern = re.compile(r"(.*/)?" + re.escape(f"{start}*").replace(r"\*", "[^/]*"))
        # The deepest of them: a folder above the results may have a stage's name.
        base = next(filter(pattern.fullmatch, bases), None)
        if star and base and (joined or not table.joined):
            left.append(f"{base}{ending}")
    return left


def table_named(name: str) -> Table:
    """The declaration of a table. Raises InputError where no stage declares it."""
    first = name.partition(".")[0]
    declared = tables_of(STAGE_OF[first]) if first in STAGE_OF else []
    declaration = next((table for table in declared if fnmatchcase(name, table.name)), None)
    if declaration is None:
        raise InputError(f"no stage declares a table `{name}`; add it to the module `tables` of the one that writes it")
    return declaration if declaration.name == name else replace(declaration, name=name)
