"""Does a state still show which prompt its run began with? Twins beside strangers, from cosine distances."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from ditscope.core.intervals import jackknife_interval
from ditscope.drift.claims import Claim
from ditscope.drift.groups import Runs, by_kind, longest_runs, rng_of
from ditscope.drift.tables import MEMORY
from ditscope.embed.files import unit, unmarked

CHUNK = 100  # draws whose weights are held at once
NO_TWINS = "fewer than two prompts have two runs of different seeds, without gaps and of full length"
NO_SCALE = "degenerate: strangers are no farther apart than the noise floor"


@dataclass(frozen=True)
class Distances:
    """Mean cosine distances at each position (states,), and the noise floor."""

    twin: np.ndarray
    stranger: np.ndarray
    floor: float

    @property
    def scale(self) -> np.ndarray:
        """What a full memory would differ by."""
        return self.stranger - self.floor

    def memory(self) -> np.ndarray:
        """(stranger - twin) / (stranger - floor), NaN where strangers are no farther apart than the floor."""
        return ratio(self.stranger - self.twin, self.scale)

    def late(self) -> float:
        """The same over the last third of positions."""
        end = last_third(len(self.twin))
        return float(ratio((self.stranger - self.twin)[end].mean(), self.scale[end].mean()))


def memory_tables(states: pl.DataFrame, draws: int) -> tuple[pl.DataFrame, list[Claim]]:
    """The table `drift.memory` of generated states, and the claim `memory` of each group.

    Twins are two runs of one prompt, strangers two of different prompts, both of one network and of different seeds.
    Memory is (stranger - twin) / (stranger - floor) of their mean cosine distances at a position: 1 where twins are as
    near as states that differ by noise alone, 0 where the prompt no longer matters. The floor is 2 D(1) - D(2), within
    0 to D(1), of the mean distances D at a lag within runs, of computed states: what is left at lag 0; of runs that
    ended in a loop 0 where D(2) is below D(1). All means weigh prompts equally; the intervals leave out one prompt at a
    time. Null: prompts permuted among the runs of each seed (fixed seeds), or among all runs (derived ones).
    O((draws + prompts) runs^2 states).
    """
    tables, claims = [], []
    for group, part in by_kind(states):
        runs = longest_runs(part, prompts_of=2)
        claim = Claim("memory", group, len(runs), int(runs.prompts.max(initial=-1)) + 1)
        if claim.prompts < 2:
            claims.append(claim.without(NO_TWINS))
            continue
        table, claim = memory_of(runs, claim, draws)
        tables.append(table.with_columns(pl.lit(v).alias(k) for k, v in group.items()))
        claims.append(claim)
    empty = pl.DataFrame(schema=unmarked(MEMORY))
    return pl.concat([empty, *(table.select(empty.columns).cast(empty.schema) for table in tables)]), claims


def memory_of(runs: Runs, claim: Claim, draws: int) -> tuple[pl.DataFrame, Claim]:
    """Rows of the table `drift.memory` of one group, less what names it, and its claim."""
    u = unit(runs.x.reshape(-1, runs.x.shape[2])).reshape(runs.x.shape)
    apart = (1 - at_each_state(u)).reshape(len(runs.sequence_numbers), -1)
    floors = noise_floors(u, runs.computed)
    distances = distances_of(apart, floors, runs)
    each = [distances_of(apart, floors, runs, runs.prompts != p) for p in range(claim.prompts)]
    memory, late = distances.memory(), distances.late()
    lowest = jackknife_interval(distances.scale, np.array([d.scale for d in each]))[0]
    known = np.isfinite(memory) & ~(lowest <= 0)
    low, high = jackknife_interval(memory, np.array([d.memory() for d in each]))
    drawn = list(permuted(apart, distances.floor, runs, draws, rng_of("memory null", claim.group)))
    null = np.array([d.memory() for d in drawn])
    band = np.quantile(np.nan_to_num(null), (0.025, 0.975), axis=0)
    columns = {"memory": memory, "low": low, "high": high,
               "null_low": band[0], "null_high": band[1]}  # fmt: skip
    table = pl.DataFrame(
        {"position": range(len(memory)), "sequence_number": runs.sequence_numbers, "twin": distances.twin,
         "stranger": distances.stranger} | {name: np.where(known, value, np.nan) for name, value in columns.items()}
    ).with_columns(
        pl.lit(len(runs)).alias("runs"), pl.lit(claim.prompts).alias("prompts"), pl.lit(distances.floor).alias("floor"),
        *(pl.col(name).fill_nan(None) for name in columns),
        pl.when(~pl.Series(known)).then(pl.lit(NO_SCALE)).alias("reason"),
    )  # fmt: skip
    if not known[last_third(len(memory))].all():
        return table, claim.without(NO_SCALE)
    interval = jackknife_interval(late, np.array([d.late() for d in each]))
    return table, claim.found(late, interval, np.array([d.late() for d in drawn]))


def at_each_state(u: np.ndarray) -> np.ndarray:
    """Inner products (states, runs, runs) of runs (runs, states, d)."""
    return u.swapaxes(0, 1) @ u.transpose(1, 2, 0)


def distances_of(apart: np.ndarray, floors: np.ndarray, runs: Runs, kept: np.ndarray | None = None) -> Distances:
    """Mean distances over prompts from those of all pairs of runs (states, runs^2), of the `kept` runs alone."""
    kept = np.ones(len(runs), bool) if kept is None else kept
    twins, strangers = pair_weights(runs.prompts, runs.seeds, kept)
    share = 1 / np.bincount(runs.prompts[kept])[runs.prompts[kept]]
    return Distances(apart @ twins.ravel(), apart @ strangers.ravel(), float(np.average(floors[kept], weights=share)))


def pair_weights(prompts: np.ndarray, seeds: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (runs, runs) of pairs in the mean over prompts of twins, and over pairs of prompts of strangers."""
    pairs = (seeds[:, None] != seeds) & kept[:, None] & kept
    count = np.zeros((prompts.max() + 1,) * 2)
    np.add.at(count, (prompts[:, None], prompts), pairs)
    each = np.divide(1, count, out=np.zeros_like(count), where=count > 0)[prompts[:, None], prompts] * pairs
    same = prompts[:, None] == prompts
    twins, strangers = each * same, each * ~same
    return twins / max(twins.sum(), 1e-300), strangers / max(strangers.sum(), 1e-300)


def permuted(apart: np.ndarray, floor: float, runs: Runs, draws: int, rng: np.random.Generator) -> Iterator[Distances]:
    """Distances whose prompts are permuted among the runs of each seed; among all where no two runs share a seed."""
    twins, strangers = pair_weights(runs.prompts, runs.seeds, np.ones(len(runs), bool))
    blocks = [np.flatnonzero(runs.seeds == seed) for seed in np.unique(runs.seeds)]
    if max(map(len, blocks)) == 1:
        blocks = [np.arange(len(runs))]
    for start in range(0, draws, CHUNK):
        orders = np.tile(np.arange(len(runs)), (min(CHUNK, draws - start), 1))
        for block in blocks:
            orders[:, block] = rng.permuted(orders[:, block], axis=1)
        cells = orders[:, :, None], orders[:, None, :]
        near, far = ((apart @ weights[cells].reshape(len(orders), -1).T).T for weights in (twins, strangers))
        yield from (Distances(a, b, floor) for a, b in zip(near, far, strict=True))


def noise_floors(u: np.ndarray, computed: np.ndarray) -> np.ndarray:
    """Of each run (runs, states, d) of unit vectors the cosine distance at lag 0 to which lags 2 and 1 point.

    Of its `computed` states (runs, states) alone: what follows from a loop would count it many times over. A run that
    ended in a loop comes back without noise, so where lag 2 is nearer than lag 1 its floor is 0.
    """
    one, two = (mean_distances(u, computed, lag) for lag in (1, 2))
    looped = ~computed.all(axis=1)
    return np.where(looped & (two < one), 0, np.clip(2 * one - two, 0, one))


def mean_distances(u: np.ndarray, computed: np.ndarray, lag: int) -> np.ndarray:
    """Mean cosine distance (runs,) of computed states at a lag; 0 where there are no two."""
    both = computed[:, lag:] & computed[:, :-lag]
    apart = np.square(u[:, lag:] - u[:, :-lag]).sum(axis=2) / 2
    return (apart * both).sum(axis=1) / both.sum(axis=1).clip(min=1)


def last_third(states: int) -> slice:
    """The last third of positions, at least one."""
    return slice(min(2 * states // 3, states - 1), None)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above` / `below`, NaN where that is not above rounding."""
    below = np.asarray(below, float)
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 1e-9)
