"""Ways to falsify a finished study: every column of a table, every kind of file."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ditscope.core.study import alike

WIDE = 20  # columns of the widest tables each of whose columns is falsified in every way


def column_mutants(table: pl.DataFrame, column: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """Copies of a table, each with one falsified value of a column, and what was done.

    Columns of wide tables take turns: another value in the first row or in the last, no value or two rows swapped.
    """
    values = table[column].to_list()
    filled = [i for i, value in enumerate(values) if value is not None]
    turn = table.columns.index(column) % 2 if table.width > WIDE else None
    if filled:
        first, middle, last = filled[0], filled[len(filled) // 2], filled[-1]
        for row in dict.fromkeys((first, last) if turn is None else ((first, last)[turn],)):
            yield f"other value in row {row}", replaced(table, column, {row: other(values, row, table.schema[column])})
        differ = not alike(values[first], values[last], 1e-3, 1e-6)
        if turn != 1:
            yield f"null in row {middle}", replaced(table, column, {middle: None})
        if turn != 0 and differ:
            swap = {first: values[last], last: values[first]}
            yield f"rows {first} and {last} swapped", replaced(table, column, swap)
    empty = next((i for i, value in enumerate(values) if value is None), None)
    if empty is not None:
        known = values[filled[0]] if filled else SOME[table.schema[column].base_type()]
        yield f"a value in row {empty}, where there was none", replaced(table, column, {empty: known})


def row_mutants(table: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Copies of a table with a row less or one twice, or with a row where there was none, and what was done."""
    for row in dict.fromkeys((0, len(table) - 1)) if len(table) else ():
        yield f"without row {row}", table.filter(pl.int_range(pl.len()) != row)
        yield (
            f"row {row} twice",
            pl.concat([table.head(row + 1), table[row : row + 1], table.tail(len(table) - row - 1)]),
        )
    if not len(table):
        some = {name: [SOME[kind.base_type()]] for name, kind in table.schema.items()}
        yield "a row where there was none", pl.DataFrame(some, table.schema)


SOME = {pl.String: "x", pl.Int64: 1, pl.Int32: 1, pl.Float64: 0.5, pl.Boolean: True, pl.List: [1]}


def replaced(table: pl.DataFrame, column: str, rows: dict[int, Any]) -> pl.DataFrame:
    """A table with other values in some rows of a column."""
    values = [rows.get(i, value) for i, value in enumerate(table[column].to_list())]
    return table.with_columns(pl.Series(column, values, table.schema[column]))


def other(values: list, row: int, kind: pl.DataType) -> Any:
    """A plausible other value: a number a little off, another of the column's texts, the other truth."""
    value = values[row]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.05 * abs(value) + 0.01
    if isinstance(value, list):
        if not value:
            return [0]
        at = len(value) // 2
        return [*value[:at], other(value, at, kind), *value[at + 1 :]]
    known = [v for v in (kind.categories.to_list() if isinstance(kind, pl.Enum) else values) if v not in (None, value)]
    return known[0] if known else f"{value}x"


# Files ----------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Keep the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Keep nothing."""
    path.write_bytes(b"")


def copy_over(path: Path, other: Path) -> None:
    """Put another file of its kind in its place."""
    path.write_bytes(other.read_bytes())


def other_number(path: Path) -> None:
    """Change the last number that is in a text, by one in its last digit."""
    text = path.read_text()
    number = re.findall(r"[0-9]", text)[-1]
    at = text.rindex(number)
    path.write_text(f"{text[:at]}{(int(number) + 1) % 10}{text[at + 1 :]}")
