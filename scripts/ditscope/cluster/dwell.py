"""How long trajectories stay in a cluster, with stays that were cut, and intervals over prompts."""

import numpy as np
import polars as pl
from scipy import stats

from ditscope.cluster.sequences import OUTLIER
from ditscope.cluster.tables import DWELL_TIMES
from ditscope.core.intervals import LEAST_UNITS
from ditscope.embed.files import unmarked

CONFIDENCE = 0.95


def dwell_times(lengths: pl.DataFrame) -> pl.DataFrame:
    """How long stays in a cluster last: share of stays longer than `duration` states (Kaplan & Meier 1958).

    A stay of which the end of its run or a gap leaves d states lasts d or longer. Whether it ended at d was not seen,
    so it counts up to d - 1 (right-censored). Stays whose beginning was not seen are left out, and so are outliers. Of
    each embedder and network a row per duration to which stays were followed, with the numbers of stays, of runs and of
    prompts that were followed so far (`at_risk`, `runs`, `prompts`), and how many ended there (`exits`) or were not
    followed further (`censored`). `low` and `high`: see `intervals`, from LEAST_UNITS prompts on.
    """
    cell = ["embedder", "network"]
    followed = pl.col("length") - (~pl.col("exit_seen")).cast(pl.Int64)
    stays = lengths.filter((pl.col("label") != OUTLIER) & pl.col("entry_seen")).with_columns(followed.alias("duration"))
    parts = stays.filter(pl.col("duration") > 0).sort(cell).partition_by(cell, maintain_order=True)
    tables = [curve(part).with_columns(pl.lit(part[name][0]).alias(name) for name in cell) for part in parts]
    schema = unmarked(DWELL_TIMES)
    return pl.concat([pl.DataFrame(schema=schema), *(table.select(list(schema)).cast(schema) for table in tables)])


def curve(stays: pl.DataFrame) -> pl.DataFrame:
    """The Kaplan-Meier curve of the stays of one embedder and network: a row per duration."""
    durations, column = np.unique(stays["duration"].to_numpy(), return_inverse=True)
    names, prompt = np.unique(stays["prompt_id"].to_numpy(), return_inverse=True)
    left, exits = np.zeros((2, len(names), len(durations)), int)
    np.add.at(left, (prompt, column), 1)
    np.add.at(exits, (prompt, column), stays["exit_seen"].to_numpy().astype(int))
    left = left[:, ::-1].cumsum(axis=1)[:, ::-1]
    runs = stays.group_by("run_id").agg(pl.col("duration").max())["duration"].to_numpy()
    ended, at_risk, prompts = exits.sum(axis=0), left.sum(axis=0), (left > 0).sum(axis=0)
    survival, low, high = intervals(exits, left)
    enough = prompts >= LEAST_UNITS
    return pl.DataFrame(
        {
            "duration": durations,
            "at_risk": at_risk,
            "runs": (runs[:, None] >= durations).sum(axis=0),
            "prompts": prompts,
            "exits": ended,
            "censored": at_risk - np.append(at_risk[1:], 0) - ended,
            "survival": survival,
            "low": np.where(enough, low, np.nan),
            "high": np.where(enough, high, np.nan),
        }
    ).with_columns(pl.col("low", "high").fill_nan(None))


def intervals(exits: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Survival after each duration, and its 95 % interval, from `exits` and stays `left` (prompts, durations).

    Stays of a prompt are not independent, so the variance is that of the prompts' contributions to log S (Williams
    1995, "Product-limit survival functions with correlated survival times"; of independent stays, Greenwood's). The
    interval is on the scale of log(-log S), with Student's t of prompts - 1 degrees of freedom. NaN where S is 0 or 1.
    """
    n = len(left)
    hazard = exits.sum(axis=0) / left.sum(axis=0)
    survival = np.cumprod(1 - hazard)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.cumsum((exits - hazard * left) / (left.sum(axis=0) * (1 - hazard)), axis=1)
        spread = np.sqrt((parts**2).sum(axis=0) * n / max(n - 1, 1))
        reach = np.exp(stats.t.ppf((1 + CONFIDENCE) / 2, max(n - 1, 1)) * spread / np.abs(np.log(survival)))
        low, high = survival**reach, survival ** (1 / reach)
    known = (survival > 0) & (survival < 1) & (spread > 0)
    return survival, np.where(known, low, np.nan), np.where(known, high, np.nan)
