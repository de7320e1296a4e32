"""Tables for tests that look at a few columns, or at what is wrong with a table: written whatever is declared."""

from pathlib import Path

import polars as pl

from ditscope.core.tables import SCHEMA_VERSION


def write_loosely(table: pl.DataFrame, path: Path | str, name: str) -> None:
    """Write any frame under a table's name, as `write_table` does with those that fit."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(path, metadata={"table": name, "schema_version": SCHEMA_VERSION})
