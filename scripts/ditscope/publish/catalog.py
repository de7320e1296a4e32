"""Every table of a study in one DuckDB file, for SQL: with primary keys, what columns mean, and views by question."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from ditscope.core.atomic import replacing
from ditscope.core.errors import InputError
from ditscope.core.schema import Table, table_named, tables_with
from ditscope.publish.views import VIEWS, View

if TYPE_CHECKING:
    import duckdb

ROW = "row"  # primary key of a table that has none: the number of the row in its files, from 0
FILES = "read_parquet($paths, union_by_name = true, filename = 'file')"


def table_files(left: Mapping[str, Iterable[Path | str]]) -> list[str]:
    """Every table of a study, and each folder that holds tables, from what its stages leave; parts of tables are none.

    A table that a later job joins (layers of a sensitivity table, runs of a benchmark) is left out: its rows are in it.
    """
    tables: dict[str, None] = {}
    for stage, paths in left.items():
        for path in map(str, paths):
            if path.endswith(".parquet") or stage == "capture":
                tables[path] = None
            tables |= dict.fromkeys(tables_with(stage, path, joined=False))
    return list(tables)


def write_catalog(tables: Iterable[Path | str], out: Path) -> None:
    """Collect Parquet tables, also those in folders, into one DuckDB file: a table for each name in their metadata.

    Tables of the same name are united by column name; what tells their files apart is a column where the key needs it.
    Each has its declared primary key, or else the number of the row, and what its rows and columns mean as comments.
    There is a view for each question of `VIEWS` whose tables are there. Raises InputError where rows have one key. Not
    byte-stable: DuckDB lays its file out by itself.
    """
    import duckdb

    named = files_by_name(tables)
    with replacing(out) as partial:
        partial.unlink(missing_ok=True)  # of a run that was killed
        with duckdb.connect(partial) as database:
            for name, paths in sorted(named.items()):
                try:
                    add_table(database, table_named(name), paths)
                except duckdb.ConstraintException as error:
                    reason = str(error).splitlines()[0]
                    raise InputError(f"{paths[0]}: rows of the table `{name}` have one key ({reason})") from None
            for view in views_of(map(in_catalog, named)):
                database.execute(f'CREATE VIEW "{view.name}" AS {view.query}')
                database.execute(f'COMMENT ON VIEW "{view.name}" IS {quoted(view.question)}')


def in_catalog(name: str) -> str:
    """The name of a table in the catalog: dots become underscores."""
    return name.replace(".", "_")


def add_table(database: "duckdb.DuckDBPyConnection", table: Table, paths: list[str]) -> None:
    """One table of the catalog from its files."""
    name, query = in_catalog(table.name), rows_query(table)
    described = database.execute(f"DESCRIBE {query}", {"paths": paths}).fetchall()
    columns = [f'"{column}" {kind}' for column, kind, *_ in described]
    key = ", ".join(f'"{column}"' for column in key_of(table))
    database.execute(f'CREATE TABLE "{name}" ({", ".join(columns)}, PRIMARY KEY ({key}))')
    database.execute(f'INSERT INTO "{name}" {query}', {"paths": paths})
    database.execute(f'COMMENT ON TABLE "{name}" IS {quoted(f"One row per {table.row}.")}')
    for column, *_ in described:
        if meant := table.column(column):
            database.execute(f'COMMENT ON COLUMN "{name}"."{column}" IS {quoted(meant.meaning)}')


def rows_query(table: Table) -> str:
    """The query that gives the rows of a table of the catalog from its files, `$paths`."""
    places = {place: number for number, place in enumerate(filter(None, table.places), start=1)}
    groups = ["([^/]*)" if place else "[^/]*" for place in table.places]
    pieces = [re.escape(piece) for piece in table.file.split("*")]
    pattern = "".join(f"{piece}{group}" for piece, group in zip_longest(pieces, groups, fillvalue="")) + "$"
    columns = [f"regexp_extract(file, {quoted(pattern)}, {number}) AS {place}" for place, number in places.items()]
    columns += [] if table.key else [f'row_number() OVER () - 1 AS "{ROW}"']
    return f"SELECT {', '.join([*columns, '* EXCLUDE (file)'])} FROM {FILES}"


def key_of(table: Table) -> tuple[str, ...]:
    """The primary key of a table of the catalog."""
    return (*filter(None, table.places), *table.key) if table.key else (ROW,)


def views_of(tables: Iterable[str]) -> Iterator[View]:
    """The views whose tables are there."""
    there = set(tables)
    return (view for view in VIEWS if set(view.tables) <= there)


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def files_by_name(tables: Iterable[Path | str]) -> dict[str, list[str]]:
    """The Parquet files of each table, by the table's name."""
    import polars as pl

    files = [file for path in map(Path, tables) for file in (path.rglob("*.parquet") if path.is_dir() else [path])]
    named: dict[str, list[str]] = {}
    for file in sorted(files):
        if name := pl.read_parquet_metadata(file).get("table"):
            named.setdefault(name, []).append(str(file))
    return named
