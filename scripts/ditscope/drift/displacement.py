"""Do runs go on, or do they stay in a region? Mean squared displacement by lag, beside walks and shuffles."""

from collections.abc import Callable

import numpy as np
import polars as pl

from ditscope.core.intervals import jackknife_interval
from ditscope.drift.claims import Claim
from ditscope.drift.groups import Runs, by_kind, longest_runs, rng_of
from ditscope.drift.nulls import MOST_INCREMENTS, companions
from ditscope.drift.tables import DISPLACEMENT
from ditscope.embed.files import unmarked

FEWEST_STATES = 7  # six lags: two in each third
NO_RUNS = f"no run without gaps has {FEWEST_STATES} generated states"
NO_MOVES = "degenerate: the states do not move"
QUANTILES = (0.025, 0.5, 0.975)
HELD = 1_000_000  # squared distances of null draws that are held at once
Draw = Callable[[int], np.ndarray]


def displacement_tables(states: pl.DataFrame, draws: int) -> tuple[pl.DataFrame, list[Claim]]:
    """The table `drift.displacement` of generated states, and the claims `walk` and `plateau` of each group.

    The displacement at a lag is the mean squared Euclidean distance of states so far apart in a run: mean over its
    pairs, over the runs of a prompt, over prompts. Both claims have one statistic: its mean over the last third of lags
    over that over the middle third. 1 is a plateau; a walk's displacement grows with the lag, and gives 5/3. Nulls: of
    `walk`, runs whose increments are drawn from those of all runs, with replacement; of `plateau`, the states of each
    run shuffled; in both the runs of a prompt alike, as they may go together. Intervals leave out one prompt at a time.
    O(draws x runs x states^2).
    """
    tables, claims = [], []
    for group, part in by_kind(states):
        runs = longest_runs(part)
        prompts = int(runs.prompts.max(initial=-1)) + 1
        both = [Claim(name, group, len(runs), prompts) for name in ("walk", "plateau")]
        curves = by_lag(squared_distances(runs.x)) if len(runs) else np.zeros((0, 0))
        if curves.shape[1] < FEWEST_STATES - 1:
            claims += [claim.without(NO_RUNS) for claim in both]
            continue
        table, made = displacement_of(runs, curves, both, draws)
        tables.append(table.with_columns(pl.lit(v).alias(k) for k, v in group.items()))
        claims += made
    empty = pl.DataFrame(schema=unmarked(DISPLACEMENT))
    return pl.concat([empty, *(table.select(empty.columns).cast(empty.schema) for table in tables)]), claims


def displacement_of(
    runs: Runs, curves: np.ndarray, claims: list[Claim], draws: int
) -> tuple[pl.DataFrame, list[Claim]]:
    """Rows of the table `drift.displacement` of one group, less what names it, and its two claims."""
    prompts = runs.prompts
    observed = over_prompts(curves, prompts)
    each = np.array([over_prompts(curves[prompts != p], prompts[prompts != p]) for p in range(claims[0].prompts)])
    low, high = jackknife_interval(observed, each)
    rng = rng_of("displacement null", claims[0].group)
    drawn = {
        claim.name: drawn_curves(draw, prompts, draws, runs.x.shape[1])
        for claim, draw in zip(claims, (walks(runs.x, prompts, rng), shuffles(runs.x, prompts, rng)), strict=True)
    }
    columns = {"low": low, "high": high}
    columns |= {
        f"{name}_{end}": values
        for name, null in drawn.items()
        for end, values in zip(("low", "median", "high"), np.quantile(null, QUANTILES, axis=0), strict=True)
    }
    table = pl.DataFrame({"lag": np.arange(1, len(observed) + 1), "displacement": observed} | columns).with_columns(
        pl.lit(len(runs)).alias("runs"),
        pl.lit(claims[0].prompts).alias("prompts"),
        *(pl.col(name).fill_nan(None) for name in ("low", "high")),
    )
    growth = thirds(observed)
    if not np.isfinite(growth):
        return table, [claim.without(NO_MOVES) for claim in claims]
    interval = jackknife_interval(growth, thirds(each))
    return table, [claim.found(float(growth), interval, thirds(drawn[claim.name])) for claim in claims]


def drawn_curves(draw: Draw, prompts: np.ndarray, draws: int, states: int) -> np.ndarray:
    """Curves of a null (draws, lags)."""
    at_once = max(1, HELD // (len(prompts) * states**2))
    many = (min(at_once, draws - start) for start in range(0, draws, at_once))
    return np.concatenate([by_lag(over_prompts(draw(count).swapaxes(0, 1), prompts)) for count in many])


def squared_distances(x: np.ndarray) -> np.ndarray:
    """Squared distances (runs, n, n) between the states of runs (runs, n, d)."""
    return from_products(np.einsum("ris,rjs->rij", x, x))


def from_products(products: np.ndarray) -> np.ndarray:
    """Squared distances from inner products (..., n, n)."""
    square = np.diagonal(products, axis1=-2, axis2=-1)
    return (square[..., :, None] + square[..., None, :] - 2 * products).clip(min=0)


def by_lag(squares: np.ndarray) -> np.ndarray:
    """Mean of (..., n, n) over all pairs of a lag: (..., n - 1), from lag 1 on."""
    n = squares.shape[-1]
    apart = np.subtract.outer(np.arange(n), np.arange(n)).ravel()
    mean = (apart[:, None] == np.arange(1, n)) / (n - np.arange(1, n))
    return squares.reshape(*squares.shape[:-2], n * n) @ mean


def over_prompts(values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Mean over prompts of the means over their runs (runs, ...); NaN of no runs."""
    if not len(values):
        return np.full(values.shape[1:], np.nan)
    weights = 1 / np.bincount(prompts)[prompts]
    return np.tensordot(weights / weights.sum(), values, axes=1)


def thirds(curves: np.ndarray) -> np.ndarray:
    """Mean of (..., lags) over the last third of lags over that over the middle third; NaN where that is 0."""
    lags = curves.shape[-1]
    a, b = lags // 3, 2 * lags // 3
    middle, last = curves[..., a:b].mean(axis=-1), curves[..., b:].mean(axis=-1)
    return np.divide(last, middle, out=np.full(np.shape(middle), np.nan), where=middle > 1e-9)


def walks(x: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> Draw:
    """Draws of squared distances (draws, runs, n, n) of walks whose increments are those of all runs.

    Runs of a prompt take theirs together, as in `together_chosen`.
    """
    increments, choose = together_chosen(x, prompts, rng)
    products = increments @ increments.T

    def draw(many: int) -> np.ndarray:
        chosen = choose(many)
        between = np.zeros((many, len(x), x.shape[1], x.shape[1]))
        between[..., 1:, 1:] = products[chosen[..., :, None], chosen[..., None, :]].cumsum(axis=-2).cumsum(axis=-1)
        return from_products(between)

    return draw


def together_chosen(x: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Draw]:
    """Increments (n, d) of runs (runs, states, d), and draws of places among them (draws, runs, states - 1).

    Runs of one prompt may go together, as copies do: at each step they take what the runs of one prompt took at one
    time, in the order of runs.
    """
    times = np.arange(x.shape[1] - 1)
    if len(x) * len(times) > MOST_INCREMENTS:  # the same ones of all runs
        times = rng.choice(times, max(1, MOST_INCREMENTS // len(x)), replace=False)
    increments = np.diff(x, axis=1)[:, times].reshape(-1, x.shape[2])
    rank, partners = companions(prompts)

    def choose(many: int) -> np.ndarray:
        lot = rng.integers(len(increments), size=(many, prompts.max() + 1, x.shape[1] - 1))[:, prompts]
        source, time = np.divmod(lot, len(times))
        return partners[source, rank[:, None]] * len(times) + time

    return increments, choose


def shuffles(x: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> Draw:
    """Draws of squared distances (draws, runs, n, n) of the states of each run in random order, a prompt's runs alike.

    Runs of one prompt may go together, as copies do.
    """
    squares = squared_distances(x)
    row = np.arange(len(x))[:, None, None]
    order = np.arange(x.shape[1])

    def draw(many: int) -> np.ndarray:
        mixed = rng.permuted(np.tile(order, (many, prompts.max() + 1, 1)), axis=2)[:, prompts]
        return squares[row, mixed[..., :, None], mixed[..., None, :]]

    return draw
