"""How fast twins part: growth of the logarithm of their distance, up to where it saturates."""

import numpy as np
import polars as pl

from ditscope.core.intervals import jackknife_interval
from ditscope.drift.claims import Claim
from ditscope.drift.groups import Runs, by_kind, longest_runs
from ditscope.drift.memory import NO_TWINS, at_each_state, last_third, pair_weights
from ditscope.drift.tables import DIVERGENCE
from ditscope.embed.files import unit, unmarked

FEWEST = 3  # positions of which a slope is taken
EQUAL = 1e-6  # distance of unit vectors below which they are one state
TOGETHER = "degenerate: twins never part"
UNTESTED = "no p-value: walks part too, and no null tells their growth from a rate"


def divergence_tables(states: pl.DataFrame) -> tuple[pl.DataFrame, list[Claim]]:
    """The table `drift.divergence` of generated states, and the claims `divergence` and `rate` of each group.

    The distance of twins (runs of one prompt and network, of different seeds) is that of their vectors at length 1,
    mean over pairs, then over prompts. It saturates at the first position where it is as large as its mean over the
    last third. The `rate` is the slope of its logarithm, per state, before it is half as large (after Rosenstein et
    al. 1993), and `divergence` what it comes to, slope times states: distances are bounded, and a line through all
    positions would tell how long runs are. Neither has a p-value: twins in random order do not part, but walks do, as
    the square root of time, and the logarithm of that is steepest at first, more so the nearer they begin. Whether runs
    are walks is a claim of `drift.displacement`. Intervals leave out one prompt at a time, with the same positions.
    """
    tables, claims = [], []
    for group, part in by_kind(states):
        runs = longest_runs(part, prompts_of=2)
        prompts = int(runs.prompts.max(initial=-1)) + 1
        both = [Claim(name, group, len(runs), prompts) for name in ("divergence", "rate")]
        if prompts < 2:
            claims += [claim.without(NO_TWINS) for claim in both]
            continue
        table, made = divergence_of(runs, both)
        tables.append(table.with_columns(pl.lit(v).alias(k) for k, v in group.items()))
        claims += made
    empty = pl.DataFrame(schema=unmarked(DIVERGENCE))
    return pl.concat([empty, *(table.select(empty.columns).cast(empty.schema) for table in tables)]), claims


def divergence_of(runs: Runs, claims: list[Claim]) -> tuple[pl.DataFrame, list[Claim]]:
    """Rows of the table `drift.divergence` of one group, less what names it, and its two claims."""
    prompts = claims[0].prompts
    u = unit(runs.x.reshape(-1, runs.x.shape[2])).reshape(runs.x.shape)
    apart = np.sqrt(np.clip(2 - 2 * at_each_state(u), 0, None))
    twins, strangers = pair_weights(runs.prompts, runs.seeds, np.ones(len(runs), bool))
    each = np.array([
        np.tensordot(apart, pair_weights(runs.prompts, runs.seeds, runs.prompts == p)[0]) for p in range(prompts)
    ])  # fmt: skip
    distance = each.mean(axis=0)
    without = (each.sum(axis=0) - each) / (prompts - 1)
    least, most = jackknife_interval(distance, without)
    end = saturation(distance)
    table = pl.DataFrame(
        {"position": range(len(distance)), "sequence_number": runs.sequence_numbers, "distance": distance,
         "low": least, "high": most,
         "equal": np.tensordot(apart <= EQUAL, twins), "stranger": np.tensordot(apart, strangers),
         "saturated": np.arange(len(distance)) >= end}
    ).with_columns(
        pl.lit(len(runs)).alias("runs"), pl.lit(prompts).alias("prompts"),
        *(pl.col(name).fill_nan(None) for name in ("low", "high")),
    )  # fmt: skip
    if distance.max() <= EQUAL:
        return table, [claim.without(TOGETHER) for claim in claims]
    half = growing(distance)
    if half < FEWEST or distance[:half].min() <= EQUAL:
        reason = f"saturated at position {end}, at half of it by position {half}: no growth to measure"
        return table, [claim.without(reason) for claim in claims]
    slopes = np.array([half, 1]) * slope(distance[:half])
    others = np.array([np.array([half, 1]) * slope(d[:half]) for d in without])
    low, high = jackknife_interval(slopes, others)
    return table, [claim.untested(float(slopes[i]), (low[i], high[i]), UNTESTED) for i, claim in enumerate(claims)]


def saturation(distance: np.ndarray) -> int:
    """The first position at which the distance is as large as its mean over the last third of positions."""
    return int(np.argmax(distance >= distance[last_third(len(distance))].mean() - EQUAL))


def slope(distance: np.ndarray) -> float:
    """Least-squares slope of the logarithm of distances at consecutive positions."""
    time = np.arange(len(distance)) - (len(distance) - 1) / 2
    return float(time @ np.log(np.maximum(distance, EQUAL)) / (time @ time))


def growing(distance: np.ndarray) -> int:
    """The number of positions before the distance is half as large as where it saturates: beyond, growth slows down."""
    return int(np.argmax(distance >= distance[last_third(len(distance))].mean() / 2 - EQUAL))
