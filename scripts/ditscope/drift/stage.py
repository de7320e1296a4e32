"""Drift: how far each state of a trajectory is from its first one, how far it steps, and how alike runs are."""

import logging
from itertools import product

import numpy as np
import polars as pl

from ditscope.core.counts import check_complete
from ditscope.core.identity import derived_seed
from ditscope.core.nulls import draws_for
from ditscope.core.paths import InputFile, OutputFolder
from ditscope.core.schema import Table
from ditscope.core.tables import write_table
from ditscope.drift.autoregression import autoregression, autoregression_runs
from ditscope.drift.claims import claims_table
from ditscope.drift.displacement import displacement_tables
from ditscope.drift.divergence import divergence_tables
from ditscope.drift.groups import KIND, generated, with_kind_of_seeds
from ditscope.drift.jumps import jumps
from ditscope.drift.memory import memory_tables
from ditscope.drift.nulls import null_tests
from ditscope.drift.series import normality
from ditscope.drift.settings import Drift
from ditscope.drift.tables import (
    AUTOREGRESSION,
    AUTOREGRESSION_RUNS,
    BANDS,
    CLAIMS_TABLE,
    DISPLACEMENT,
    DISTANCES,
    DIVERGENCE,
    DRIFT,
    GROUP_CLAIMS,
    JUMPS,
    MEMORY,
    NORMALITY,
    NULLS,
    SIMILARITY,
    STEPS,
)
from ditscope.embed.files import (
    STATE,
    by_embedder,
    continue_loops,
    degenerate_networks,
    marked,
    read_states,
    run_ends,
    run_starts,
    unit,
    vectors,
)

log = logging.getLogger(__name__)
CONTROL = DRIFT.schema()["control"]
CHUNK = 8192  # rows whose distances are computed at once: bounds the float64 copies to CHUNK x d


def drift(
    embeddings: list[InputFile],
    trajectories: list[InputFile],
    folder: OutputFolder,
    settings: Drift = Drift(),
    max_length: int = 0,
) -> None:
    """Measure the drift of every trajectory from its first state, with shuffled controls.

    A run that ended in a loop is continued to `max_length` invocations (0: as far as the longest run goes): else the
    runs that still move would be all that is left at later states. The first three tables hold these
    states, the others computed ones alone. Leaves in `folder`: drift.parquet (distances to the first state and to the
    previous one), nulls.parquet and bands.parquet (what drift comes out of nothing), similarity.parquet (every pair of
    runs), autoregression.parquet and autoregression_runs.parquet (lag-1 coefficients of networks, of long runs),
    normality.parquet (tests of the step sizes of each run), jumps.parquet, memory.parquet (of the prompt),
    displacement.parquet (by lag), divergence.parquet (of runs of one prompt), and claims.parquet, which has what the
    last three say beside their nulls.
    """
    states = read_states(embeddings, trajectories)
    log.info("%d states of %d runs", states.height, len(run_starts(states)) - 1)
    whole = continue_loops(states, run_ends(states, trajectories), max_length)
    table = drift_table(whole, settings.shuffles)
    computed = table if whole.height == states.height else drift_table(states, settings.shuffles)
    asked = product(range(settings.shuffles + 1), whole.select(STATE).rows())
    left = ((row[0], row[1:]) for row in table.select("shuffle", *STATE).iter_rows())
    check_complete(folder / "drift.parquet", "states (of each shuffle)", asked, left)
    tests, bands = null_tests(whole)
    poor = degenerate_networks(states)
    for frame, declared in (
        (table, DRIFT),
        (run_similarity(states), SIMILARITY),
        (tests, NULLS),
        (bands, BANDS),
        (autoregression(computed, STEPS), AUTOREGRESSION),
        (autoregression_runs(computed, STEPS), AUTOREGRESSION_RUNS),
        (normality(computed, STEPS), NORMALITY),
        (jumps(generated(states), settings), JUMPS),
        *claims(generated(with_kind_of_seeds(whole, trajectories))),
    ):
        write_table(marked(frame, poor), folder / f"{declared.stem}.parquet", declared)


def claims(states: pl.DataFrame) -> list[tuple[pl.DataFrame, Table]]:
    """The tables of claims about groups of runs, and `drift.claims`, which has them beside their nulls."""
    draws = draws_for(states.select(KIND).n_unique() * len(GROUP_CLAIMS))
    made = (memory_tables(states, draws), MEMORY), (displacement_tables(states, draws), DISPLACEMENT), (
        divergence_tables(states, draws), DIVERGENCE)  # fmt: skip
    whole = claims_table([claim for (_, found), _ in made for claim in found])
    return [*((frame, table) for (frame, _), table in made), (whole, CLAIMS_TABLE)]


def distances(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Euclidean distance, cosine distance 1 - cos and angle (radians, 0 to pi) between rows of `a` and `b` (n, d).

    With unit vectors u, v: 1 - cos = |u - v|^2 / 2 and angle = 2 atan2(|u - v|, |u + v|) (Kahan, "How futile are
    mindless assessments of roundoff", 2006), both exact to rounding also for nearly equal rows, where arccos loses
    half of the digits. A zero row has no direction: its cosine distance and angle are NaN.
    """
    u, v = unit(a), unit(b)
    chord = np.linalg.norm(u - v, axis=1)
    undefined = ~(u.any(axis=1) & v.any(axis=1))
    return {
        "euclidean": np.linalg.norm(a.astype(np.float64) - b.astype(np.float64), axis=1),
        "cosine_distance": np.where(undefined, np.nan, chord**2 / 2),
        "angle_rad": np.where(undefined, np.nan, 2 * np.arctan2(chord, np.linalg.norm(u + v, axis=1))),
    }


def drift_table(states: pl.DataFrame, shuffles: int) -> pl.DataFrame:
    """Distances of each state to its run's first state and to the previous one, observed and in shuffled order.

    The first state of a text embedder is the initial prompt, that of an image embedder the first image. A shuffled
    control keeps the first state in place and permutes the later ones; its sequence number is that of the slot. The
    permutation depends only on network, run and number of the shuffle, so all embedders of a modality share it. Steps
    are null at the first state and after a gap.
    O((1 + shuffles) n d) time, O(n d) memory.
    """
    parts = []
    for _, part in by_embedder(states):
        x, starts = vectors(part), run_starts(part)
        rows = np.arange(part.height)
        first = np.repeat(starts[:-1], np.diff(starts))
        unknown = (rows == first) | (np.diff(part["position"], prepend=0) != 1)
        for number in range(shuffles + 1):
            order = shuffled_order(part, starts, number) if number else rows
            previous = np.where(rows == first, order, np.roll(order, 1))
            measured = row_distances(x, order, first)
            measured |= {f"step_{k}": np.where(unknown, np.nan, v)
                         for k, v in row_distances(x, order, previous).items()}  # fmt: skip
            parts.append(
                part.drop("vector", "text", "position").with_columns(
                    pl.lit("shuffled" if number else "observed", CONTROL).alias("control"),
                    pl.lit(number, pl.Int64).alias("shuffle"),
                    *(pl.Series(k, v).fill_nan(None) for k, v in measured.items()),
                )
            )
    return pl.concat(parts).sort(*STATE[:3], "control", "shuffle", "sequence_number")


def shuffled_order(states: pl.DataFrame, starts: np.ndarray, number: int) -> np.ndarray:
    """Row numbers with each run's rows after its first one permuted, by a seed of network, run and `number`."""
    order = np.arange(states.height)
    runs = states[starts[:-1]].select("network", "run_id").rows()
    for (network, run_id), start, end in zip(runs, starts[:-1], starts[1:], strict=True):
        rng = np.random.default_rng(derived_seed("shuffle", network, run_id, number))
        order[start + 1 : end] = rng.permutation(order[start + 1 : end])
    return order


def row_distances(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """`distances` between the rows of `x` numbered `a` and `b`, in chunks."""
    parts = [distances(x[a[i : i + CHUNK]], x[b[i : i + CHUNK]]) for i in range(0, len(a), CHUNK)]
    return {name: np.concatenate([part[name] for part in parts]) for name in DISTANCES}


def run_similarity(states: pl.DataFrame) -> pl.DataFrame:
    """Similarity of every pair of runs under each embedder, from the directions of their generated states.

    `mean_cosine` is the mean over all pairs of states (the product of the mean unit vectors), `centroid_cosine` the
    cosine of the mean unit vectors, `aligned_cosine` the mean over states at the same position. The initial prompt,
    which runs share by design, is left out, and so are zero vectors. The upper triangle with the diagonal is stored:
    R (R + 1) / 2 rows for R runs of an embedder; O(R^2 (d + T d)) time for T states a run, O(R^2) memory.
    """
    parts = []
    for embedder, part in by_embedder(states):
        part = part.filter(pl.col("position") >= 0)
        u = unit(vectors(part))
        keep = np.flatnonzero(u.any(axis=1))
        u, part = u[keep], part[keep]
        starts = run_starts(part)
        runs = part[starts[:-1]].select("network", "run_id", "prompt_id", "seed")
        mean = np.add.reduceat(u, starts[:-1]) / np.diff(starts)[:, None] if len(u) else u
        number = np.repeat(np.arange(runs.height), np.diff(starts))
        aligned = np.zeros((runs.height, runs.height))
        shared = np.zeros((runs.height, runs.height), np.int64)
        positions = part["position"].to_numpy()
        for position in np.unique(positions):
            at = positions == position
            block = np.ix_(number[at], number[at])
            aligned[block] += u[at] @ u[at].T
            shared[block] += 1
        i, j = np.triu_indices(runs.height)
        direction = unit(mean)
        cosine = (direction @ direction.T)[i, j]
        defined = np.linalg.norm(direction, axis=1) > 0
        cosine[~(defined[i] & defined[j])] = np.nan
        with np.errstate(invalid="ignore"):
            aligned = (aligned / shared)[i, j]
        parts.append(
            pl.concat([runs[i].rename(lambda c: f"{c}_a"), runs[j].rename(lambda c: f"{c}_b")], how="horizontal")
            .with_columns(
                pl.Series("mean_cosine", (mean @ mean.T)[i, j]),
                pl.Series("centroid_cosine", cosine).fill_nan(None),
                pl.Series("aligned_cosine", aligned).fill_nan(None),
                pl.Series("shared_positions", shared[i, j]),
            )
            .select(pl.lit(embedder).alias("embedder"), pl.all())
        )
    return pl.concat(parts)
