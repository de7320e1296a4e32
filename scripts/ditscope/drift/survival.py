"""Survival of what runs began with (Kaplan & Meier 1958), and quantized networks beside their base."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.identity import derived_seed
from ditscope.core.intervals import jackknife_error, mean_interval, share_interval, unit_means
from ditscope.core.nulls import draws_for, holm, two_sided
from ditscope.drift.groups import rng_of
from ditscope.drift.lifetimes import Lasted, Readings, Trajectories
from ditscope.drift.tables import PROMPT, QUANTIZED, SURVIVAL
from ditscope.embed.files import unmarked
from ditscope.shapes.oracle import UNCLEAR

GROUP = ["network", "seeds", "against", "by", "what"]
FAMILY = ("network", "base", "seeds", "by")  # of tests of quantization
MOST_COMPARED = 10_000  # pairs of runs and starts in a reference
ALIKE = "degenerate: no pair differs"
UNPAIRED = "no run of the quantized network has one of its base with the same prompt and seed that tells this"


def survival(lifetimes: pl.DataFrame, runs: Trajectories, read: Sequence[Readings]) -> pl.DataFrame:
    """The table `drift.survival`: share of runs in which nothing has changed, by position.

    A run without a change is followed to its last known state, and censored there. The interval takes prompts as
    independent: standard errors leave out one prompt at a time, and become bounds by `share_interval`. `reference`:
    against the prompt, the same of runs held against what other prompts began with; against a base, of pairs of runs
    of the base that differ by their seed alone.
    """
    readers = {(reader.by, reader.what): reader for reader in read}
    parts = [pl.DataFrame(schema=unmarked(SURVIVAL))]
    for part in lifetimes.partition_by(GROUP, maintain_order=True):
        group = part.select(GROUP).row(0, named=True)
        told = part.filter(pl.col("reason").is_null())
        if told.is_empty():
            continue
        prompts = np.unique(told["prompt_id"].to_numpy(), return_inverse=True)[1]
        lasted, changed = told["lasted"].to_numpy(), told["changed"].to_numpy()
        curves = kaplan_meier(lasted, changed, prompts)
        reader = readers[group["by"], group["what"]]
        of_kind = [run for run in runs.runs if run["seeds"] == group["seeds"]]
        if group["against"] == PROMPT:
            other = strangers(reader, [run for run in of_kind if run["network"] == group["network"]])
        else:
            other = twins(reader, [run for run in of_kind if run["network"] == group["against"]])
        n = len(curves["position"])
        unclear = told.filter(pl.col("became") == UNCLEAR)["lasted"].to_numpy()
        columns = {"runs": len(told), "left_out": len(part) - len(told)} | curves
        columns |= {"unclear": np.bincount(unclear, minlength=n)[:n], "reference": reference(other, n)}
        frame = pl.DataFrame(columns).with_columns(
            *(pl.col(name).fill_nan(None) for name in ("low", "high", "reference")),
            *(pl.lit(value).alias(name) for name, value in group.items()),
        )
        parts.append(frame.select(parts[0].columns).cast(parts[0].schema))
    return pl.concat(parts)


def kaplan_meier(lasted: np.ndarray, changed: np.ndarray, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """Survival by position, from the states before the first change of each run, and whether there was one.

    Gives columns of `drift.survival`. A run is at risk at a position if its state there is known and nothing has
    changed before.
    """
    position = np.arange((lasted + changed).max())
    risk, ends = np.zeros((2, prompts.max() + 1, len(position)), int)
    np.add.at(risk, prompts, (lasted + changed)[:, None] > position)
    np.add.at(ends, prompts, changed[:, None] & (lasted[:, None] == position))
    share = survivors(risk.sum(axis=0), ends.sum(axis=0))
    without = survivors(risk.sum(axis=0) - risk, ends.sum(axis=0) - ends)
    units = (risk > 0).sum(axis=0)
    low, high = share_interval(share, jackknife_error(without), units)
    leaves = (~changed)[:, None] & (lasted[:, None] == position + 1)
    return {
        "position": position, "at_risk": risk.sum(axis=0), "prompts": units, "changes": ends.sum(axis=0),
        "censored": leaves.sum(axis=0), "survival": share, "low": low, "high": high,
    }  # fmt: skip


def survivors(risk: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Share that is left after each position (..., positions); where none is at risk, as before."""
    left = 1 - np.divide(ends, risk, out=np.zeros(np.shape(ends)), where=risk > 0)
    return left.cumprod(axis=-1)


def strangers(reader: Readings, runs: list[dict]) -> list[Lasted]:
    """How long each run is as the runs of each other prompt began; of many, as some drawn at random."""
    starts: dict[str, Any] = {}
    for run in runs:
        if (start := reader.starts.get(run["run_id"])) is not None:
            starts.setdefault(run["prompt_id"], start)
    told = [run for run in runs if run["prompt_id"] in starts and run["run_id"] in reader.states]
    count, prompts = len(told) * len(starts), list(starts)
    rng = np.random.default_rng(derived_seed("strangers", reader.by, reader.what))
    chosen = np.arange(count) if count <= MOST_COMPARED else np.sort(rng.choice(count, MOST_COMPARED, replace=False))
    pairs = ((told[i // len(starts)], prompts[i % len(starts)]) for i in chosen)
    return [reader.lasted(run["run_id"], starts[other]) for run, other in pairs if other != run["prompt_id"]]


def twins(reader: Readings, runs: list[dict]) -> list[Lasted]:
    """How long runs of one prompt and different seeds are alike; of many, the first ones of each prompt."""
    of: dict[str, list[str]] = {}
    for run in runs:
        if run["run_id"] in reader.states:
            of.setdefault(run["prompt_id"], []).append(run["run_id"])
    most = max(2, int(np.sqrt(2 * MOST_COMPARED / max(1, len(of)))))
    return [reader.together(a, b) for ids in of.values() for a, b in combinations(ids[:most], 2)]


def reference(lasting: list[Lasted], positions: int) -> np.ndarray:
    """Survival at the first positions, NaN beyond the last known one and where there is nothing to compare with."""
    if not lasting:
        return np.full(positions, np.nan)
    lasted, changed = map(np.array, zip(*lasting, strict=True))
    curve = kaplan_meier(lasted, changed, np.zeros(len(lasting), int))["survival"][:positions]
    return np.concatenate([curve, np.full(positions - len(curve), curve[-1] if curve[-1] == 0 else np.nan)])


def quantized(lifetimes: pl.DataFrame, runs: Trajectories) -> pl.DataFrame:
    """The table `drift.quantized`: does what runs began with last as long in a quantized network as in its base?

    Runs are paired by prompt and seed. Each counts up to the `horizon`, so that none is censored; pairs that were not
    followed as far, as for a gap, are left out. The difference is a mean over prompts with Student's interval; its null
    turns the sign of each prompt's difference at random, of which n prompts have 2^n ways: there is no p-value where
    none could be below 0.05 after correction within network, kind of seeds and `by`.
    """
    told = lifetimes.filter(pl.col("reason").is_null(), pl.col("against") == PROMPT)
    kinds = (
        lifetimes.filter(pl.col("against") == PROMPT).select("seeds", "by", "what").unique().sort("seeds", "by", "what")
    )
    cells = [{"network": a, "base": b} | kind for a, b in runs.pairs() for kind in kinds.to_dicts()]
    tests = Counter(family_of(cell) for cell in cells)
    draws = draws_for(max(tests.values(), default=1))
    rows = [
        dict.fromkeys(QUANTIZED.columns) | cell | difference(told, cell, draws, tests[family_of(cell)])
        for cell in cells
    ]
    table = pl.DataFrame(rows, schema=unmarked(QUANTIZED))
    return table.with_columns(holm(pl.col("p_value")).over(FAMILY).alias("p_holm")).sort(QUANTIZED.key)


def family_of(cell: dict[str, str]) -> tuple[str, ...]:
    """The tests that a row of the table `drift.quantized` is corrected with."""
    return tuple(cell[name] for name in FAMILY)


def difference(told: pl.DataFrame, cell: dict[str, str], draws: int, tests: int) -> dict[str, Any]:
    """The numbers of a row of the table `drift.quantized`, one of so many `tests`."""
    own, theirs = (
        told.filter(network=cell[side], seeds=cell["seeds"], by=cell["by"], what=cell["what"])
        for side in ("network", "base")
    )
    pairs = own.join(theirs, on=["prompt_id", "seed"], suffix="_base").sort("prompt_id", "seed")
    if pairs.is_empty():
        return {"pairs": 0, "left_out": 0, "prompts": 0, "reason": UNPAIRED}
    followed = pl.min_horizontal("followed", "followed_base")
    horizon, paired = int(pairs.select(followed.max()).item()), len(pairs)
    pairs = pairs.filter(followed == horizon)
    here, base = (pairs[name].clip(upper_bound=horizon).to_numpy().astype(float) for name in ("lasted", "lasted_base"))
    prompts = pairs["prompt_id"].to_list()
    interval = mean_interval(here - base, prompts)
    each = unit_means(here - base, prompts)
    if not (here - base).any():
        interval = interval._replace(low=None, high=None)
    signs = rng_of("quantized null", cell).choice([-1.0, 1.0], size=(draws, len(each)))
    null = signs @ each / len(each)
    low, median, high = map(float, np.quantile(null, (0.025, 0.5, 0.975)))
    least = 2 / 2 ** len(each)
    reason = None if (here - base).any() else ALIKE
    if not reason and least * tests >= 0.05:
        reason = f"{len(each)} prompts: no p-value of {tests} tests can be below {least:.2g}"
    return {
        "pairs": len(pairs), "left_out": paired - len(pairs), "prompts": interval.units, "horizon": horizon,
        "base_lasted": float(unit_means(base, prompts).mean()), "lasted": float(unit_means(here, prompts).mean()),
        "difference": interval.mean, "low": interval.low, "high": interval.high, "draws": draws, "null_low": low,
        "null_median": median, "null_high": high, "reason": reason,
        "p_value": None if reason else two_sided(interval.mean, null),
    }  # fmt: skip
