"""Parquet tables that say what they are: name and schema version travel in the file's metadata."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from ditscope.core.atomic import replacing
from ditscope.core.errors import InputError, again, parsing

SCHEMA_VERSION = "2"
POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)  # Polars panics on some files


def write_table(table: pl.DataFrame, path: Path | str, name: str) -> None:
    """Write `table` to Parquet under `name`, by a temporary file and a rename."""
    with replacing(path) as partial:
        table.write_parquet(partial, metadata={"table": name, "schema_version": SCHEMA_VERSION})


def read_table(path: Path | str, name: str) -> pl.DataFrame:
    """Read a table that `write_table` wrote under `name`; refuse another table or schema version."""
    try:
        with parsing(path, f"not a readable Parquet file ({{}}); {again(path)}", POLARS):
            metadata = pl.read_parquet_metadata(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such table; run the stage that writes `{name}` first") from None
    found, version = metadata.get("table"), metadata.get("schema_version")
    if found != name:
        raise InputError(f"{path}: holds the table `{found}`, not `{name}`")
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}, this ditscope reads {SCHEMA_VERSION}; run the stage again")
    with parsing(path, f"damaged Parquet file ({{}}); {again(path)}", POLARS):
        return pl.read_parquet(path)


def concat_tables(paths: Iterable[Path | str], name: str) -> pl.DataFrame:
    """The rows of several tables of the same name, in the order of `paths`."""
    return pl.concat([read_table(path, name) for path in paths], how="vertical")
