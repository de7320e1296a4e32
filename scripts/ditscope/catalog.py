"""Every table of a study in one DuckDB file, for SQL."""

from pathlib import Path

import duckdb
import polars as pl


def write_catalog(tables: list[Path], out: Path) -> None:
    """Collect Parquet tables into one DuckDB file, a table for each name in the files' metadata.

    Tables of the same name are united by column name. Not byte-stable: DuckDB lays its file out by itself.
    """
    named: dict[str, list[str]] = {}
    for path in sorted(tables):
        name = pl.read_parquet_metadata(path).get("table")
        if name:
            named.setdefault(name.replace(".", "_"), []).append(str(path))
    partial = out.with_name(out.name + ".partial")
    partial.unlink(missing_ok=True)
    with duckdb.connect(partial) as database:
        for name, paths in sorted(named.items()):
            database.execute(
                f'CREATE TABLE "{name}" AS SELECT * FROM read_parquet($paths, union_by_name = true)', {"paths": paths}
            )
    partial.replace(out)
