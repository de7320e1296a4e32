"""Which networks have runs too poor to show anything, with the number that decided."""

import numpy as np
import polars as pl

from ditscope.core.schema import Table
from ditscope.embed.files import RUN, by_embedder, vectors

FEWEST_DISTINCT = 3  # states that differ in the median run: fewer have no path, whatever is computed from them
CHUNK = 8192  # rows whose hashes are computed at once
CELL = ["embedder", "network"]
COUNTS = {**dict.fromkeys(RUN, pl.String), "states": pl.Int64, "distinct": pl.Int64}


def degenerate_networks(states: pl.DataFrame) -> pl.DataFrame:
    """Of each embedder and network: why its runs show nothing (`degenerate`; null: they may), and what decided.

    The numbers are `runs`, and of the median run `median_states` and `median_distinct`, generated states alone. Fewer
    than FEWEST_DISTINCT distinct ones are degenerate: what is computed of so few tells their number alone. O(n d).
    """
    counts = pl.concat([pl.DataFrame(schema=COUNTS), *(distinct_of_runs(part) for _, part in by_embedder(states))])
    cells = counts.group_by(CELL).agg(
        pl.len().cast(pl.Int64).alias("runs"),
        pl.col("states", "distinct").median().name.prefix("median_"),
    )
    distinct, of = (pl.col(f"median_{name}").cast(pl.String).str.strip_suffix(".0") for name in ("distinct", "states"))
    reason = pl.format(f"distinct states of the median run: {{}} of {{}}, {FEWEST_DISTINCT} needed", distinct, of)
    poor = pl.col("median_distinct") < FEWEST_DISTINCT
    return cells.with_columns(pl.when(poor).then(reason).alias("degenerate")).sort(CELL)


def distinct_of_runs(states: pl.DataFrame) -> pl.DataFrame:
    """Of each run (`RUN`) of one embedder: generated `states`, and how many are `distinct`, to the last bit.

    An embedder gives equal texts or images equal vectors, and the control `random-walk` never gives one twice.
    """
    generated = states.filter(pl.col("position") >= 0)
    keyed = generated.select(*RUN, pl.Series("key", row_hashes(vectors(generated)), pl.UInt64))
    counts = keyed.group_by(RUN).agg(
        pl.len().cast(pl.Int64).alias("states"), pl.col("key").n_unique().cast(pl.Int64).alias("distinct")
    )
    runs = states.select(RUN).unique(maintain_order=True)
    return runs.join(counts, on=RUN, how="left", maintain_order="left").with_columns(
        pl.col("states", "distinct").fill_null(0)
    )


def row_hashes(x: np.ndarray) -> np.ndarray:
    """A 64-bit number (n,) of each row of `x` (n, d) float32: equal for equal rows, wherever they stand."""
    odd = np.random.default_rng(0).integers(1 << 63, size=x.shape[1], dtype=np.uint64) * 2 + 1
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    parts = [(bits[i : i + CHUNK].astype(np.uint64) * odd).sum(axis=1) for i in range(0, len(bits), CHUNK)]
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def unmarked(table: Table) -> dict[str, pl.DataType]:
    """The schema of a table before it is `marked`."""
    return {name: kind for name, kind in table.schema().items() if name != "degenerate"}


def marked(table: pl.DataFrame, poor: pl.DataFrame) -> pl.DataFrame:
    """A table of an analysis with its last column, `degenerate`, from `degenerate_networks`.

    A row of two embedders or networks has the reason of the first that is; a row of an embedder alone has one where all
    its networks are.
    """
    reasons, table = poor.select(*CELL, "degenerate"), table.drop("degenerate", strict=False)
    embedders, networks = ([c for c in (n, f"{n}_a", f"{n}_b") if c in table.columns] for n in CELL)
    if not networks:
        every = pl.when(pl.col("degenerate").is_not_null().all()).then(pl.col("degenerate").first())
        reasons = reasons.group_by("embedder").agg(every)
        return table.join(reasons, on="embedder", how="left", maintain_order="left")
    for i, network in enumerate(networks):
        side = reasons.rename({"degenerate": f"degenerate_{i}"})
        on = [embedders[min(i, len(embedders) - 1)], network]
        table = table.join(side, left_on=on, right_on=CELL, how="left", maintain_order="left")
    names = [f"degenerate_{i}" for i in range(len(networks))]
    return table.with_columns(pl.coalesce(names).alias("degenerate")).drop(names)
