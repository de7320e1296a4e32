"""Vectors of the user's own, made elsewhere: a table with one for each state of the trajectories."""

from pathlib import Path

import numpy as np
import polars as pl

from ditscope.core.errors import InputError, again, parsing
from ditscope.core.tables import POLARS

FAMILY = "vectors"
STATE = ["network", "run_id", "sequence_number"]


def vectors_of(rows: pl.DataFrame, source: Path) -> np.ndarray:
    """The vector of each row of trajectories (rows, dimension), float32 at length 1, by network, run and number.

    `source` is a Parquet file, or a folder of them, with the columns `network`, `run_id`, `sequence_number` and
    `vector` (a list of numbers), as `embed` leaves. Raises InputError on a state that has no vector, or two, and on
    vectors of several lengths. A vector of zeros stays one.
    """
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files:
        raise InputError(f"{source}: holds no .parquet file; give a table of vectors")
    tables, types = [], {name: rows.schema[name] for name in STATE} | {"vector": pl.List(pl.Float32)}
    for file in files:
        with parsing(file, f"not a table of vectors ({{}}); {again(file)}", POLARS):
            tables.append(pl.read_parquet(file, columns=[*STATE, "vector"]).cast(types))
    known = pl.concat(tables)
    states = rows.select(STATE).join(known, on=STATE, how="left", maintain_order="left")
    for problem, bad in (
        ("two vectors", states.select(STATE).is_duplicated()),
        ("no vector", states["vector"].is_null()),
    ):
        for network, run, number, _ in states.filter(bad).head(1).rows():
            raise InputError(
                f"{source}: {problem} for {network}, run {run}, sequence number {number}; give each state one"
            )
    if (lengths := states["vector"].list.len().unique().sort().to_list())[1:]:
        raise InputError(f"{source}: vectors of {lengths} numbers; give all the same length")
    vectors = states["vector"].explode().to_numpy().reshape(len(states), -1).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0).astype(np.float32)
