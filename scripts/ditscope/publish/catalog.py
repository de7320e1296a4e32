"""Every table of a study in one DuckDB file, for SQL."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ditscope.core.atomic import replacing
from ditscope.core.schema import tables_with


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

    Tables of the same name are united by column name. Not byte-stable: DuckDB lays its file out by itself.
    """
    import duckdb

    named = files_by_name(tables)
    with replacing(out) as partial:
        partial.unlink(missing_ok=True)  # of a run that was killed
        with duckdb.connect(partial) as database:
            for name, paths in sorted(named.items()):
                rows = "read_parquet($paths, union_by_name = true)"
                database.execute(f'CREATE TABLE "{name}" AS SELECT * FROM {rows}', {"paths": paths})


def files_by_name(tables: Iterable[Path | str]) -> dict[str, list[str]]:
    """The Parquet files of each table of the catalog, by the table's name there (dots become underscores)."""
    import polars as pl

    files = [file for path in map(Path, tables) for file in (path.rglob("*.parquet") if path.is_dir() else [path])]
    named: dict[str, list[str]] = {}
    for file in sorted(files):
        if name := pl.read_parquet_metadata(file).get("table"):
            named.setdefault(name.replace(".", "_"), []).append(str(file))
    return named
