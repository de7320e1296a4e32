"""Parquet tables that say what they are: name and schema version travel in the file's metadata."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import polars as pl

from ditscope.core.atomic import replacing
from ditscope.core.errors import InputError, SchemaError, again, check_version, parsing
from ditscope.core.schema import Table, table_named

SCHEMA_VERSION = "2"
Files = dict[str, list[Path]]  # what each stage left
POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)  # Polars panics on some files


def write_table(frame: pl.DataFrame, path: Path | str, table: Table | str) -> None:
    """Write `frame` to Parquet as a table, given its declaration or its name, by a temporary file and a rename.

    Raises SchemaError, before anything is written, where it is not as the table is declared.
    """
    declared = table_named(table) if isinstance(table, str) else table
    if faults := list(declared.faults(frame)):
        raise SchemaError(
            f"{path}: the table `{declared.name}` {'; '.join(faults)}; this is a fault of ditscope, please report it "
            "with this line; nothing was written"
        )
    with replacing(path) as partial:
        frame.write_parquet(partial, metadata={"table": declared.name, "schema_version": SCHEMA_VERSION})


def read_table(path: Path | str, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a table that `write_table` wrote under `name`, or some columns; refuse another table or schema version."""
    try:
        with parsing(path, f"not a readable Parquet file ({{}}); {again(path, ending='.parquet')}", POLARS):
            metadata = pl.read_parquet_metadata(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such table; run the stage that writes `{name}` first") from None
    table, version = metadata.get("table"), metadata.get("schema_version")
    if table != name:
        raise InputError(f"{path}: holds the table `{table}`, not `{name}`")
    check_version(path, version, SCHEMA_VERSION, "run the stage again")
    with parsing(path, f"damaged Parquet file ({{}}); {again(path, ending='.parquet')}", POLARS):
        return pl.read_parquet(path, columns=columns)


def concat_tables(
    paths: Iterable[Path | str],
    name: str,
    key: Sequence[str] = (),
    part: Callable[[pl.DataFrame], pl.DataFrame] = lambda table: table,
) -> pl.DataFrame:
    """The rows of several tables of the same name, in the order of `paths`; of each what `part` makes of it.

    Raises InputError where two rows have the same `key`: a row that counts twice weighs twice in every mean.
    """
    paths = list(paths)
    tables = [part(read_table(path, name)) for path in paths]
    table = pl.concat(tables, how="vertical")
    if key and (twice := table.select(pl.struct(key).is_duplicated()).to_series()).any():
        row = table.select(key).filter(twice).row(0, named=True)
        same = [pl.col(column).eq_missing(pl.lit(value)) for column, value in row.items()]
        holders = [path for path, part in zip(paths, tables, strict=True) if not part.filter(*same).is_empty()]
        what = ", ".join(f"{column} {value}" for column, value in row.items())
        where = " and ".join(dict.fromkeys(map(str, holders)))
        raise InputError(f"{where}: the row of {what} is there more than once; give each row once")
    return table


def named(files: Files, stage: str, name: str) -> list[Path]:
    """The files of a stage whose name is `name`."""
    return [path for path in files[stage] if path.name == name]
