"""From metrics of both sides to a verdict per metric and one over all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from ditscope.core.intervals import LEAST_UNITS, unit_means
from ditscope.core.nulls import holm
from ditscope.core.paired import (
    LEVEL,
    Centre,
    centre,
    detectable,
    tail_of_chance,
    units_to_decide,
    units_to_see,
    unseen,
    worst_mean,
)
from ditscope.workflow.verdict.metrics import Measured, Metric, metric_named

ALPHA = 1 - LEVEL
BETTER, WORSE, EQUIVALENT, UNDECIDED, SHOWN = "better", "worse", "equivalent", "undecided", "not judged"
EXIT = {EQUIVALENT: 0, BETTER: 0, WORSE: 1, UNDECIDED: 3}  # 2 is bad input
WORST_NAMED = 3


@dataclass(frozen=True)
class Row:
    """A metric of both sides over n prompts; differences are B - A in its own unit.

    `low`, `high`: 95 % interval, None below 8 prompts. `p`: Holm's, None where it is not tested. `tail`: mean
    difference of the worst 5 % of prompts, `tail_chance` what exchangeable sides give, `tail_p` how often it is as bad.
    `worst`: prompts from the worst on, with their differences. `more`: prompts that would decide, None where it is
    decided or none would. `detectable`: the difference that n prompts find with 80 % power.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    margin: float | None
    null: float
    p: float | None
    verdict: str
    n: int
    more: int | None = None
    detectable: float | None = None
    tail: float | None = None
    tail_chance: float | None = None
    tail_p: float | None = None
    worst: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Tested:
    """A metric before its verdict; `changed`, of shares, is which part of the prompts falls and which rises."""

    row: Row
    centre: Centre
    about: Metric
    changed: tuple[float, float] | None = None


def judge(measured: Measured, perfect: str, margins: Mapping[str, float | None]) -> list[Row]:
    """A row per metric of `margins`, which gives each its margin (None: shown, not judged).

    Where one side is the base (`perfect`), a metric of fidelity cannot but favour it: then it is asked whether the
    other side is behind by more than the margin, and PSNR, which is infinite there, is shown only.
    """
    tested = [test(name, measured, perfect, margin) for name, margin in margins.items()]
    asked = [t.row.margin is not None and t.row.n >= LEAST_UNITS for t in tested]
    values = [t.centre.p(t.row.null) if ask else None for t, ask in zip(tested, asked, strict=True)]
    corrected = pl.DataFrame({"p": values}, schema={"p": pl.Float64}).select(holm(pl.col("p")))["p"].to_list()
    return [decided(t, value, sum(asked)) for t, value in zip(tested, corrected, strict=True)]


def test(name: str, measured: Measured, perfect: str, margin: float | None) -> Tested:
    """The centre and intervals of a metric's differences over prompts."""
    about = metric_named(name)
    if name == "psnr_db" and perfect:
        margin = None
    null = 0.0
    if about.fidelity and perfect and margin is not None:  # the base is ahead by definition
        null = -margin * about.gain if perfect == "A" else margin * about.gain
    if about.sets:
        a, b, middle = measured.sets[name]
        differences = None
    else:
        of_a, of_b = (unit_means(values, measured.prompts) for values in measured.values[name])
        a, b, differences = float(of_a.mean()), float(of_b.mean()), of_b - of_a
        middle = centre(differences)
    interval, changed = middle.interval(), None
    if about.shares and differences is not None:
        counts = int((differences < 0).sum()), int((differences > 0).sum())
        interval = wider(interval, unseen(middle.mean, *counts, middle.n))
        changed = counts[0] / middle.n, counts[1] / middle.n
    low, high = interval if middle.n >= LEAST_UNITS else (None, None)
    row = Row(name, a, b, middle.mean, low, high, margin, null, None, UNDECIDED, middle.n)
    if differences is not None:
        row = with_tail(row, differences, about, perfect, measured)
    return Tested(row, middle, about, changed)


def with_tail(row: Row, differences: np.ndarray, about: Metric, perfect: str, measured: Measured) -> Row:
    """A row with the worst 5 % of its prompts, the worst of them by name, and what chance gives."""
    gains = about.gain * differences
    order = np.argsort(gains, kind="stable")[:WORST_NAMED]
    prompts = list(dict.fromkeys(measured.prompts))
    chance, p = (None, None) if about.fidelity and perfect else tail_of_chance(gains)
    return replace(
        row,
        tail=about.gain * float(worst_mean(gains)),
        tail_chance=None if chance is None else about.gain * chance,
        tail_p=p,
        worst=tuple((prompts[i], float(differences[i])) for i in order if gains[i] < 0),
    )


def wider(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The interval that holds both."""
    return min(one[0], other[0]), max(one[1], other[1])


def decided(tested: Tested, p: float | None, tests: int) -> Row:
    """A row with its verdict, and how many more prompts one would take."""
    row, margin = tested.row, tested.row.margin
    if margin is None:
        return replace(row, verdict=SHOWN)
    std = tested.centre.error * np.sqrt(row.n)
    alpha = ALPHA / max(1, tests)
    gain, ahead = tested.about.gain * row.difference, tested.about.gain * row.null
    verdict = UNDECIDED
    if row.low is not None and row.high is not None and -margin < row.low and row.high < margin:
        verdict = EQUIVALENT
    elif p is not None and p <= ALPHA and gain != ahead:
        # Of a side that the base is ahead of, only "behind by more than the margin" can be found; and the reverse.
        side = WORSE if gain < ahead else BETTER
        verdict = side if not ahead or (side == WORSE) == (ahead < 0) else UNDECIDED
    more = None
    if verdict == UNDECIDED:
        totals = [units_to_decide(row.difference, std, margin, row.null, alpha)]
        if tested.changed:
            totals.append(units_to_see(row.difference, *tested.changed, margin))
        more = None if None in totals else max(1, max(n for n in totals if n) - row.n)
    return replace(row, p=p, verdict=verdict, more=more, detectable=detectable(std, row.n, alpha))


def overall(rows: Sequence[Row]) -> str:
    """One verdict over the metrics that are judged: worse if one is, undecided if one is, better if one is."""
    found = [row.verdict for row in rows if row.verdict != SHOWN]
    return next((verdict for verdict in (WORSE, UNDECIDED, BETTER) if verdict in found), EQUIVALENT)
