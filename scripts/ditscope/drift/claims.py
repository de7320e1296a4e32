"""What trajectories are said to do, beside what comes out of nothing: rows of the table `drift.claims`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.nulls import holm, two_sided
from ditscope.drift.tables import CLAIMS_TABLE
from ditscope.embed.files import unmarked


@dataclass(frozen=True)
class Claim:
    """One claim of a group of runs (embedder, network, kind of seeds)."""

    name: str
    group: dict[str, str]
    runs: int
    prompts: int
    numbers: dict[str, Any] = field(default_factory=dict)

    def without(self, reason: str) -> "Claim":
        """A claim that the data cannot bear, with the reason."""
        return replace(self, numbers={"reason": reason})

    def found(self, statistic: float, interval: tuple[Any, Any], null: np.ndarray) -> "Claim":
        """A claim with its interval over prompts, beside what its null gave in each draw (NaN: nothing)."""
        null = null[np.isfinite(null)]
        if not len(null):
            return self.without("what comes out of nothing is not defined")
        low, middle, high = map(float, np.quantile(null, (0.025, 0.5, 0.975)))
        numbers = measured(statistic, interval)
        numbers |= {"draws": len(null), "null_low": low, "null_median": middle, "null_high": high}
        return replace(self, numbers=numbers | {"p_value": two_sided(statistic, null)})

    def untested(self, statistic: float, interval: tuple[Any, Any], reason: str) -> "Claim":
        """A claim with its interval over prompts, and why there is no null to hold it against."""
        return replace(self, numbers=measured(statistic, interval) | {"reason": reason})


def measured(statistic: float, interval: tuple[Any, Any]) -> dict[str, Any]:
    """A statistic with the ends of its interval, None where that has none."""
    low, high = (float(end) if np.isfinite(end) else None for end in interval)
    return {"statistic": statistic, "low": low, "high": high}


def claims_table(claims: Sequence[Claim]) -> pl.DataFrame:
    """The table `drift.claims`, p-values corrected for all of its tests (Holm 1979)."""
    schema = unmarked(CLAIMS_TABLE)
    rows = [
        dict.fromkeys(schema) | claim.group | {"claim": claim.name, "runs": claim.runs, "prompts": claim.prompts}
        | claim.numbers
        for claim in claims
    ]  # fmt: skip
    table = pl.DataFrame(rows, schema=schema)
    return table.with_columns(holm(pl.col("p_value")).alias("p_holm")).sort("embedder", "network", "seeds", "claim")
