"""The embedded states of trajectories, as the analyses of drift, clusters and topology read them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ditscope.core.errors import InputError
from ditscope.core.tables import concat_tables

RUN = ["embedder", "network", "run_id"]
STATE = [*RUN, "sequence_number"]


def read_states(embeddings: list[Path], trajectories: list[Path]) -> pl.DataFrame:
    """Join the tables `embeddings` and `trajectories`: one row per state of an embedder, sorted by `STATE`.

    Columns: embedder, modality, network, run_id, prompt_id, seed, sequence_number (-1: the initial prompt), position
    (0, 1, ... among the run's generated states of the embedder's modality; -1: the initial prompt), text (of an image:
    the caption that followed it, if one did) and vector. Raises InputError on an embedding that has no trajectory, is
    there twice, is not finite, or differs in length from the others of its embedder. O(n d) for n states of d numbers.
    """
    if not embeddings or not trajectories:
        raise InputError("no embeddings or no trajectories given; name at least one table of each")
    steps = concat_tables(trajectories, "trajectories", STATE[1:]).sort(STATE[1:])
    steps = steps.select(
        "network",
        "run_id",
        "sequence_number",
        "prompt_id",
        pl.col("seed").first().over("network", "run_id"),  # with derived seeds every invocation has one of its own
        pl.col("output_text").backward_fill().over("network", "run_id").alias("text"),
    )
    embedded = concat_tables(embeddings, "embeddings", STATE).select(*STATE, "modality", "vector")
    states = embedded.join(steps, on=["network", "run_id", "sequence_number"], how="left").sort(STATE)
    if states.is_empty():
        raise InputError(f"{embeddings[0]}: no embeddings in it; check `embed.embedders` and run embed again")
    where = f"embeddings ({embeddings[0]}, ...)" if len(embeddings) > 1 else str(embeddings[0])
    refuse(states, pl.col("prompt_id").is_null(), where, "has no row in the trajectories; run embed again")
    length = pl.col("vector").list.len()
    refuse(states, (length != length.first().over("embedder")).fill_null(True), where,
           "differs in length from the embedder's others; run embed again")  # fmt: skip
    finite = pl.col("vector").list.eval(pl.element().is_finite()).list.all()
    refuse(states, ~finite.fill_null(False), where, "holds NaN or Inf; check the embedder and run embed again")
    position = (pl.col("sequence_number") >= 0).cum_sum().over(RUN).cast(pl.Int64) - 1
    return states.select(
        "embedder", "modality", "network", "run_id", "prompt_id", "seed", "sequence_number",
        position.alias("position"), "text", "vector",
    )  # fmt: skip


def refuse(states: pl.DataFrame, bad: pl.Expr, where: str, complaint: str) -> None:
    """Raise an InputError that names the first state for which `bad` holds."""
    for row in states.filter(bad).head(1).iter_rows(named=True):
        state = f"{row['embedder']}, {row['network']}, run {row['run_id']}, sequence number {row['sequence_number']}"
        raise InputError(f"{where}: the embedding of {state} {complaint}")


def by_embedder(states: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """The states of each embedder, in order of their names; vectors of one embedder have one length."""
    for part in states.partition_by("embedder", maintain_order=True):
        yield part["embedder"][0], part


def vectors(states: pl.DataFrame) -> np.ndarray:
    """The vectors (n, d) of one embedder's states, in the stored type; (0, 1) for no states."""
    if states.is_empty():
        return np.zeros((0, 1), np.float32)
    return states["vector"].explode().to_numpy().reshape(states.height, -1)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of `x` (n, d) at length 1, in float64; a zero row has no direction and stays zero."""
    x = x.astype(np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def run_starts(states: pl.DataFrame) -> np.ndarray:
    """Row numbers at which a new run begins, with the number of rows at the end: runs are [starts[i], starts[i+1])."""
    if states.is_empty():
        return np.zeros(1, np.int64)
    first = states.select(pl.struct(RUN).rle_id().diff().fill_null(1).cast(pl.Boolean)).to_series()
    return np.append(first.arg_true().to_numpy(), states.height).astype(np.int64)
