"""Drift: how far each state of a trajectory is from its first one, how far it steps, and how alike runs are."""

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl

from ditscope.core.counts import check_rows
from ditscope.core.identity import derived_seed
from ditscope.core.nulls import draws_for
from ditscope.core.paths import InputFile, OutputFolder
from ditscope.core.schema import Table
from ditscope.core.tables import write_table
from ditscope.drift.autoregression import autoregression, autoregression_runs
from ditscope.drift.claims import claims_table
from ditscope.drift.displacement import displacement_tables
from ditscope.drift.divergence import divergence_tables
from ditscope.drift.groups import KIND
from ditscope.drift.jumps import jumps
from ditscope.drift.lifetimes import Readings, Trajectories, lifetimes, readings
from ditscope.drift.memory import memory_tables
from ditscope.drift.nulls import null_tests
from ditscope.drift.series import normality
from ditscope.drift.settings import Drift
from ditscope.drift.survival import quantized, survival
from ditscope.drift.tables import (
    AUTOREGRESSION,
    AUTOREGRESSION_RUNS,
    BANDS,
    CLAIMS_TABLE,
    DISPLACEMENT,
    DISTANCES,
    DIVERGENCE,
    DRIFT,
    JUMPS,
    LIFETIMES,
    MEMORY,
    NORMALITY,
    NULLS,
    QUANTIZED,
    SIMILARITY,
    STEPS,
    SURVIVAL,
    TESTED,
)
from ditscope.embed.files import (
    RUN,
    STATE,
    by_embedder,
    continue_loops,
    degenerate_networks,
    marked,
    read_states,
    run_ends,
    run_starts,
    sample_runs,
    unit,
    unmarked,
    vectors,
    with_kind_of_seeds,
)

log = logging.getLogger(__name__)
CONTROL = DRIFT.schema()["control"]
CHUNK = 256  # rows whose distances are computed at once: their float64 copies stay in the processor's cache
FAR = 3.5  # |u - v|^2 of unit vectors from which on |u + v| is too small to follow from it


def drift(
    embeddings: list[InputFile],
    trajectories: list[InputFile],
    folder: OutputFolder,
    settings: Drift = Drift(),
    max_length: int = 0,
    images: Sequence[InputFile] = (),
) -> None:
    """Measure the drift of every trajectory from its first state, with shuffled controls.

    A run that ended in a loop is continued to `max_length` invocations (0: as far as the longest run goes): else the
    runs that still move would be all that is left at later states. Similarity, autoregression, normality and jumps are
    of computed states alone. Leaves in `folder`: drift.parquet (distances to the first state and to the previous one),
    nulls.parquet and bands.parquet (what drift comes out of nothing), similarity.parquet (every pair of runs),
    autoregression.parquet and autoregression_runs.parquet (lag-1 coefficients of networks, of long runs),
    normality.parquet (tests of the step sizes of each run), jumps.parquet, memory.parquet (of the prompt),
    displacement.parquet (by lag), divergence.parquet (of runs of one prompt), and claims.parquet, which has what the
    last three say beside their nulls; lifetimes.parquet, survival.parquet and quantized.parquet (how long what runs
    began with lasts), with what the oracle reads in the pictures of the networks `settings.oracle`, which are in
    `images` (the tars of their trajectories).
    """
    states = read_states(embeddings, trajectories)
    log.info("%d states of %d runs", states.height, len(run_starts(states)) - 1)
    similarity, computed = run_similarity(states, settings.max_runs), drift_table(states, settings.shuffles)
    leaps = jumps(states, settings)
    check_rows(folder / "jumps.parquet", "runs", *(rows.select(RUN).unique().sort(RUN) for rows in (states, leaps)))
    whole = continue_loops(states, run_ends(states, trajectories), max_length)
    looped = whole.height > states.height
    poor = degenerate_networks(states)
    del states  # large
    table = drift_table(whole, settings.shuffles) if looped else computed.with_columns(continued=False)
    for number in range(settings.shuffles + 1):
        left = table.filter(shuffle=number).select(STATE)
        check_rows(folder / "drift.parquet", "states (of each shuffle)", whole.select(STATE), left)
    tests, bands = null_tests(whole)
    some = sample_runs(whole, settings.max_runs)
    runs = Trajectories(trajectories, max_length, set(some["run_id"]))
    for frame, declared in (
        (table.select(list(unmarked(DRIFT))), DRIFT),
        (similarity, SIMILARITY),
        (tests, NULLS),
        (bands, BANDS),
        (autoregression(computed, STEPS), AUTOREGRESSION),
        (autoregression_runs(computed, STEPS), AUTOREGRESSION_RUNS),
        (normality(computed, STEPS), NORMALITY),
        (leaps, JUMPS),
        *claims(with_kind_of_seeds(whole, trajectories)),
        *lasting(runs, list(readings(runs, some, settings.oracle, images))),
    ):
        write_table(marked(frame, poor), folder / f"{declared.stem}.parquet", declared)


def lasting(runs: Trajectories, read: list[Readings]) -> list[tuple[pl.DataFrame, Table]]:
    """The tables of how long what runs began with lasts."""
    times = lifetimes(runs, read)
    return [(times, LIFETIMES), (survival(times, runs, read), SURVIVAL), (quantized(times, runs), QUANTIZED)]


def claims(states: pl.DataFrame) -> list[tuple[pl.DataFrame, Table]]:
    """The tables of claims about groups of runs, and `drift.claims`, which has them beside their nulls."""
    draws = draws_for(states.select(KIND).n_unique() * len(TESTED))
    made = (memory_tables(states, draws), MEMORY), (displacement_tables(states, draws), DISPLACEMENT), (
        divergence_tables(states), DIVERGENCE)  # fmt: skip
    whole = claims_table([claim for (_, of_table), _ in made for claim in of_table])
    return [*((frame, table) for (frame, _), table in made), (whole, CLAIMS_TABLE)]


def distances(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Euclidean distance, cosine distance 1 - cos and angle (radians, 0 to pi) between rows of `a` and `b` (n, d).

    With unit vectors u, v: 1 - cos = |u - v|^2 / 2 and angle = 2 atan2(|u - v|, |u + v|) (Kahan, "How futile are
    mindless assessments of roundoff", 2006), both exact to rounding also for nearly equal rows, where arccos loses
    half of the digits. A zero row has no direction: its cosine distance and angle are NaN.
    """
    u, v = a.astype(np.float64), b.astype(np.float64)
    euclidean = np.sqrt(squares(u - v))
    lengths = np.sqrt(squares(u)), np.sqrt(squares(v))
    undefined = (lengths[0] == 0) | (lengths[1] == 0)
    for x, length in zip((u, v), lengths, strict=True):
        x /= np.where(length > 0, length, 1)[:, None]
    chord = squares(u - v)
    around = 4 - chord  # |u + v|^2
    far = np.flatnonzero(chord > FAR)
    around[far] = squares(u[far] + v[far])
    return {
        "euclidean": euclidean,
        "cosine_distance": np.where(undefined, np.nan, chord / 2),
        "angle_rad": np.where(undefined, np.nan, 2 * np.arctan2(np.sqrt(chord), np.sqrt(around))),
    }


def squares(x: np.ndarray) -> np.ndarray:
    """Sum of squares of each row of `x` (n, d)."""
    return np.einsum("ij,ij->i", x, x)


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
        rows, lengths = np.arange(part.height), np.diff(starts)
        first, length = np.repeat(starts[:-1], lengths), np.repeat(lengths, lengths)
        unknown = (rows == first) | (np.diff(part["position"], prepend=0) != 1)
        to_first = row_distances(x, rows, first)
        measured = {name: np.empty((shuffles + 1) * part.height) for name in (*DISTANCES, *STEPS)}
        source, shuffle = np.empty((2, (shuffles + 1) * part.height), np.int64)
        for number in range(shuffles + 1):
            order = shuffled_order(part, starts, number) if number else rows
            place = shuffles * first + number * length + rows  # a run's shuffles follow each other
            source[place], shuffle[place] = rows, number
            steps = row_distances(x, order, np.where(rows == first, order, np.roll(order, 1)))
            for name in DISTANCES:
                measured[name][place] = to_first[name][order]
                measured[f"step_{name}"][place] = np.where(unknown, np.nan, steps[name])
        control = (
            pl.when(pl.col("shuffle") > 0).then(pl.lit("shuffled", CONTROL)).otherwise(pl.lit("observed", CONTROL))
        )
        columns = [pl.Series("shuffle", shuffle), *(pl.Series(k, v).fill_nan(None) for k, v in measured.items())]
        table = part.drop("vector", "text", "position")[source].with_columns(columns)
        table = table.with_columns(control.alias("control"))
        parts.append(table.select(name for name in DRIFT.columns if name in table.columns))
    return pl.concat(parts)


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


def run_similarity(states: pl.DataFrame, most: int = 0) -> pl.DataFrame:
    """Similarity of every pair of runs under each embedder, from the directions of their generated states.

    `mean_cosine` is the mean over all pairs of states (the product of the mean unit vectors), `centroid_cosine` the
    cosine of the mean unit vectors, `aligned_cosine` the mean over states at the same position. Of more than `most`
    runs (0: of none) a sample is compared. The initial prompt,
    which runs share by design, is left out, and so are zero vectors. The upper triangle with the diagonal is stored:
    R (R + 1) / 2 rows for R runs of an embedder; O(R^2 (d + T d)) time for T states per run, O(R^2) memory.
    """
    parts = []
    for embedder, part in by_embedder(sample_runs(states, most)):
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
