"""Whether the shapes of trajectories say more than walks, or normal clouds, of as many distinct states do."""

from collections.abc import Callable
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from ditscope.core.identity import derived_seed
from ditscope.core.nulls import draws_for, holm, two_sided
from ditscope.embed.files import by_embedder, run_starts, unit, unmarked, vectors
from ditscope.topology.diagrams import SAME, persistence, repeated, some
from ditscope.topology.tables import DIMENSION, NULLS, SURROGATES, VERDICTS

MADE = 400  # surrogate runs of an embedder, network and null, at least, shared out over the sizes that occur
PER_PROMPT = 20  # of them per prompt: the mean of too few would be off by as much as that of the data
MOST_MADE = 4000
MOST_STATES = 100  # distinct states of a run that takes part: with loops, more take a tenth of a second each
FEWEST_STATES = 4  # distinct ones: fewer have no shape
CONFIDENCE = 0.95
ALPHA = 0.05


class Cloud(NamedTuple):
    """What a run brings to the test."""

    prompt: str
    distinct: int
    duplicates: int
    length: np.ndarray  # total length of the bars in each dimension


def shape_tests(states: pl.DataFrame, max_dimension: int, max_points: int = 0) -> pl.DataFrame:
    """The total length of the bars beside surrogates, of each embedder, network, dimension and null.

    Statistic: total length of the finite bars of a run's distinct states, mean over prompts of the mean over their
    runs. Repeated states add no bar, so a run is compared with surrogates of as many distinct states: `walk`s, whose
    increments are drawn from the observed ones of all runs of the network, and `normal` clouds with the covariance of
    the states about their run's mean. A prompt counts as one draw, as if its runs were copies: of runs that are not, p
    is too large rather than too small. p-values are two-sided and corrected for all tests of the table (Holm 1979).
    `duplicate_correlation` is Spearman's, over runs, of the statistic and the number of repeated states. `verdict`:
    bars are longer or shorter than chance where they are so beside both nulls. H2 is not tested: it takes too long.
    """
    groups = [part for _, e in by_embedder(states) for part in e.partition_by("network", maintain_order=True)]
    dimensions = DIMENSION.dtype().categories.to_list()[: min(max_dimension, 1) + 1]
    draws = draws_for(len(groups) * len(dimensions) * len(SURROGATES))
    records = [row for part in groups for row in group_tests(part, dimensions, draws, max_points)]
    table = pl.DataFrame(records, schema=unmarked(NULLS)).with_columns(holm(pl.col("p_value")).alias("p_holm"))
    side = (pl.col("statistic") - pl.col("null_median")).sign()
    both = ((pl.col("p_holm") < ALPHA).all() & (side.n_unique() == 1)).over("embedder", "network", "dimension")
    beyond = pl.when(side > 0).then(pl.lit(VERDICTS[0])).otherwise(pl.lit(VERDICTS[1]))
    verdict = pl.when(both).then(beyond).otherwise(pl.lit(VERDICTS[2]))
    return table.with_columns(pl.when(pl.col("p_value").is_not_null()).then(verdict).alias("verdict"))


def group_tests(states: pl.DataFrame, dimensions: list[str], draws: int, max_points: int) -> list[dict]:
    """The rows of one embedder and network."""
    x, starts = vectors(states).astype(np.float64), run_starts(states)
    spans = list(pairwise(starts))
    generated = states["position"].to_numpy() >= 0
    runs = [x[a:b][generated[a:b]] for a, b in spans]
    prompts = [states["prompt_id"][int(a)] for a, _ in spans]
    clouds = [
        c
        for p, run in zip(prompts, runs, strict=True)
        if len(run) and (c := cloud(p, some(run, max_points), len(dimensions)))
    ]
    key = {"embedder": states["embedder"][0], "network": states["network"][0]}
    told = {"runs": len(clouds), "prompts": len({c.prompt for c in clouds})}
    rows = [key | {"dimension": d, "null": null} | told for d, null in product(dimensions, SURROGATES)]
    if not clouds:
        reason = f"no run has {FEWEST_STATES} to {MOST_STATES} distinct states"
        return [row | {"reason": reason} for row in rows]
    rng = np.random.default_rng(derived_seed("topology null", *key.values()))
    makers = {"walk": walk_maker(runs, states, spans), "normal": normal_maker(runs)}
    null = {name: surrogate_means(clouds, maker, len(dimensions), draws, rng) for name, maker in makers.items()}
    observed = prompt_means(clouds)
    duplicates = [c.duplicates for c in clouds]
    for row in rows:
        number = dimensions.index(row["dimension"])
        drawn, lengths = null[row["null"]][:, number], [c.length[number] for c in clouds]
        ends = np.quantile(drawn, [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2])
        row |= {"draws": draws, "statistic": float(observed[number]), "p_value": two_sided(observed[number], drawn)}
        row |= dict(zip(("null_low", "null_median", "null_high"), map(float, ends), strict=True))
        if np.ptp(duplicates) > 0 and np.ptp(lengths) > 0:
            row["duplicate_correlation"] = float(stats.spearmanr(duplicates, lengths).statistic)
        row["distinct_states"] = float(np.median([c.distinct for c in clouds]))
    return rows


def cloud(prompt: str, run: np.ndarray, dimensions: int) -> Cloud | None:
    """A run (states, d) for the test; None where it has too few or too many distinct states."""
    points = distinct(unit(run))
    if not FEWEST_STATES <= len(points) <= MOST_STATES:
        return None
    return Cloud(prompt, len(points), len(run) - len(points), lengths_of(points, dimensions))


def distinct(u: np.ndarray) -> np.ndarray:
    """The rows of `u` (n, d) that are not within `SAME` of an earlier one."""
    return u[~repeated(u)]


def lengths_of(points: np.ndarray, dimensions: int) -> np.ndarray:
    """Total length of the finite bars of points (n, d) in the first `dimensions` dimensions."""
    diagrams = persistence(points, dimensions - 1)
    return np.array([(bars[:, 1] - bars[:, 0])[np.isfinite(bars[:, 1])].sum() for bars in diagrams])


def prompt_means(clouds: list[Cloud]) -> np.ndarray:
    """Mean over prompts of the means over their runs, by dimension."""
    prompts = sorted({c.prompt for c in clouds})
    return np.mean([np.mean([c.length for c in clouds if c.prompt == p], axis=0) for p in prompts], axis=0)


Maker = Callable[[int, np.random.Generator], np.ndarray]  # so many distinct states (n, d) at random


def walk_maker(runs: list[np.ndarray], states: pl.DataFrame, spans: list[tuple[int, int]]) -> Maker:
    """Walks of increments drawn from those of all runs that are none of zero; from a state that is drawn too."""
    positions = [states["position"].to_numpy()[a:b] for a, b in spans]
    kept = [p[p >= 0] for p in positions]
    steps = np.concatenate([np.diff(run, axis=0)[np.diff(p) == 1] for run, p in zip(runs, kept, strict=True)])
    steps = steps[np.linalg.norm(steps, axis=1) > SAME]
    points = np.concatenate(runs)

    def make(size: int, rng: np.random.Generator) -> np.ndarray:
        start = points[rng.integers(len(points))]
        return unit(start + np.vstack([0 * start, steps[rng.integers(len(steps), size=size - 1)].cumsum(axis=0)]))

    return make


def normal_maker(runs: list[np.ndarray]) -> Maker:
    """Normal states about the mean of a run that is drawn, with the covariance of all about their run's mean."""
    means = np.stack([run.mean(axis=0) for run in runs if len(run)])
    about = np.concatenate([run - run.mean(axis=0) for run in runs if len(run)])
    scale, axes = np.linalg.svd(about, full_matrices=False)[1:]
    root = scale[:, None] * axes / np.sqrt(max(1, len(about) - len(means)))

    def make(size: int, rng: np.random.Generator) -> np.ndarray:
        return unit(means[rng.integers(len(means))] + rng.standard_normal((size, len(root))) @ root)

    return make


def surrogate_means(
    clouds: list[Cloud], make: Maker, dimensions: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Statistics (draws, dimensions) of data of surrogates: of each prompt one run, as long as one of its own."""
    sizes = sorted({c.distinct for c in clouds})
    prompts = sorted({c.prompt for c in clouds})
    each = max(PER_PROMPT, min(MOST_MADE, max(MADE, PER_PROMPT * len(prompts))) // len(sizes))
    pools = {size: np.array([lengths_of(make(size, rng), dimensions) for _ in range(each)]) for size in sizes}
    total = np.zeros((draws, dimensions))
    for prompt in prompts:
        of_prompt = np.array([sizes.index(c.distinct) for c in clouds if c.prompt == prompt])
        stacked = np.stack([pools[size] for size in sizes])
        total += stacked[rng.choice(of_prompt, draws), rng.integers(each, size=draws)]
    return total / len(prompts)
