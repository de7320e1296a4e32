"""What `ditscope doctor` checks of the stage `embed`."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import polars as pl

from ditscope.core.schema import tables_of
from ditscope.core.study import Study
from ditscope.embed.files import apart_by_seeds
from ditscope.models.embedders.random_walk import FAMILY as RANDOM_WALK
from ditscope.models.embedders.vectors import FAMILY as VECTORS
from ditscope.trajectories.check import states

NORM = 1e-3  # how far the length of a vector that is stored at length 1 may be from it


def check_embed(study: Study) -> None:
    """Every state of an embedder's modality has one vector of length 1, equal states equal ones, all of one size."""
    trajectories = states(study)
    dimensions: dict[str, int] = {}
    for file in study.targets("embed"):
        table = study.table("embed", file, "embeddings")
        if table is None:
            continue
        _, embedder, shard = file.split("/")
        network, _, number = shard.removesuffix(".parquet").rpartition("-")
        entry = study.config.embedders[embedder]
        source = trajectories.get(f"trajectories/{network}/shard-{number}.parquet")
        names = pl.DataFrame({"embedder": [embedder], "network": [network], "modality": [entry.modality]})
        study.agree("embed", file, table, pl.concat([names] * len(table)) if len(table) else names.clear())
        if wrong := set(table["embedder"]) - {embedder}:
            study.note("embed", file, f"holds vectors of {wrong.pop()}")
        kept = None
        if source is not None:
            kept = source.filter(pl.col("type") == entry.modality.upper())
            rows = table.select("run_id", "sequence_number").rows()
            wanted = kept.select("run_id", "sequence_number").rows()
            study.same_rows("embed", file, rows, wanted, "states of the trajectories")
        lengths = set(table["vector"].list.len())
        if lengths and lengths != {dimensions.setdefault(embedder, min(lengths))}:
            study.note("embed", file, f"vectors of {sorted(lengths)} numbers; others of {embedder} have another length")
            continue
        if len(table):
            x = np.stack([np.asarray(vector, np.float64) for vector in table["vector"]])
            check_vectors(study, file, x, kept if kept is not None and len(kept) == len(table) else None, embedder)


def check_vectors(study: Study, file: str, x: np.ndarray, kept: pl.DataFrame | None, embedder: str) -> None:
    """Vectors (n, d) are none of zeros and of length 1, those of equal states equal; the control is its own walk."""
    from ditscope.embed.stage import walk_vectors

    entry = study.config.embedders[embedder]
    norms = np.linalg.norm(x, axis=1)
    if (norms == 0).any():
        study.note("embed", file, f"{(norms == 0).sum()} of {len(x)} vectors are zero")
    elif entry.family != RANDOM_WALK and (wrong := np.flatnonzero(abs(norms - 1) > NORM)).size:
        study.note("embed", file, f"{len(wrong)} of {len(x)} vectors are not of length 1, as row {wrong[0] + 1}")
    if kept is None or entry.family == VECTORS:
        return
    if entry.family == RANDOM_WALK:
        wanted = study.once(f"walk {file}", lambda: walk_vectors(kept, entry.dimension).astype(np.float64))
        if wanted.shape != x.shape or not np.allclose(x, wanted, rtol=1e-4, atol=1e-5):
            study.note("embed", file, "is not the random walk of its runs")
        return
    first: dict[str, int] = {}
    for row, key in enumerate(kept["output_key"]):
        if not np.array_equal(x[first.setdefault(key, row)], x[row]):
            return study.note("embed", file, f"rows {first[key] + 1} and {row + 1} are one state with two vectors")


def generated(study: Study, tables: dict[str, pl.DataFrame], keys: list[str]) -> set[tuple]:
    """Embedder and `keys` of every generated state of the embedder's modality."""
    columns = ["network", "run_id", "sequence_number", "type", "derived_seed"]
    steps = apart_by_seeds(pl.concat([table.select(columns) for table in tables.values()]))
    steps = steps.filter(pl.col("sequence_number") >= 0)
    return {
        (embedder, *row)
        for embedder in study.config.embed.embedders
        for row in steps.filter(pl.col("type") == study.config.embedders[embedder].modality.upper()).select(keys).rows()
    }


def analysed(study: Study, stage: Callable[..., None], trajectories: Iterable[str]) -> dict[str, pl.DataFrame]:
    """The tables that an analysis stage leaves in a folder of its own, by name."""
    embeddings = [study.results / file for file in study.targets("embed")]
    with tempfile.TemporaryDirectory() as folder:
        stage(embeddings, [study.results / file for file in trajectories], Path(folder))
        return {path.stem: pl.read_parquet(path) for path in Path(folder).glob("*.parquet")}


def check_analysis(
    study: Study,
    stage: str,
    again: Callable[[Study, list[str]], dict[str, pl.DataFrame]],
    rounding: float,
) -> dict[str, pl.DataFrame | None]:
    """The tables of an analysis of the embedded states are what its inputs give, row by row; the tables, by file.

    `again` computes them anew by the name of their file, and `rounding` is how far numbers may be off.
    Nothing is compared, and the answer is empty, where inputs are missing: their own stage's check says so.
    """
    trajectories = states(study)
    inputs = [study.results / file for file in [*study.targets("embed"), *trajectories]]
    whole = len(trajectories) == sum(file.endswith(".parquet") for file in study.targets("trajectories"))
    names = {table.file: table.name for table in tables_of(stage)}
    left = {file: study.table(stage, file, names[file]) for file in study.targets(stage)}
    if not (whole and all(path.exists() for path in inputs) and any(table is not None for table in left.values())):
        return {}
    wanted: dict[str, pl.DataFrame] = {}
    with study.noting(stage, study.targets(stage)[0]):
        wanted = study.once(stage, lambda: again(study, list(trajectories)))
    for file, table in left.items():
        if table is not None and Path(file).stem in wanted:
            study.agree(stage, file, table, wanted[Path(file).stem], "", 1e-5, rounding)
    return left
