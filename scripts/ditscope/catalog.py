"""Every table of a study in one DuckDB file, for SQL."""

from pathlib import Path

import duckdb
import polars as pl

from ditscope.atomic import replacing


def write_catalog(tables: list[Path], out: Path) -> None:
    """Collect Parquet tables into one DuckDB file, a table for each name in the files' metadata.

    Tables of the same name are united by column name. Not byte-stable: DuckDB lays its file out by itself.
    """
    named: dict[str, list[str]] = {}
    for path in sorted(tables):
        name = pl.read_parquet_metadata(path).get("table")
        if name:
            named.setdefault(name.replace(".", "_"), []).append(str(path))
    with replacing(out) as partial:
        partial.unlink(missing_ok=True)  # of a run that was killed
        with duckdb.connect(partial) as database:
            for name, paths in sorted(named.items()):
                rows = "read_parquet($paths, union_by_name = true)"
                database.execute(f'CREATE TABLE "{name}" AS SELECT * FROM {rows}', {"paths": paths})
