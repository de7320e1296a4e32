"""What a finished study measured of the rows of a published table."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ditscope.benchmark.tables import QUALITY, TIMING
from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.workflow.reproduce.published import TIMED, Published, PublishedRow

GIB = 2**30


@dataclass(frozen=True)
class Compared:
    """A published value beside the measured one: on which hardware, and whether it is within the tolerance.

    `measured` is None where there is none, for the `reason`.
    """

    name: str
    row: PublishedRow
    hardware: str
    measured: float | None
    allowed: float
    reason: str = ""

    @property
    def within(self) -> bool | None:
        """Whether the measured value is as near as the tolerance asks; None without one."""
        if self.measured is None:
            return None
        return abs(self.measured - self.row.value) <= self.allowed * (1 + 1e-9)


def compared(table: Published, results: Path) -> list[Compared]:
    """Every published row, per hardware that the study ran on. Raises InputError where it has no benchmark."""
    files = {t.name: results / t.file for t in (TIMING, QUALITY)}
    for file in files.values():
        if not file.is_file():
            raise InputError(f"{file}: not there yet: the study has not been run to its end")
    tables = {name: read_table(file, name) for name, file in files.items()}
    hosts = pl.concat([t.select("hardware") for t in tables.values()])["hardware"].unique(maintain_order=True)
    return [one(name, row, table, tables, host) for host in hosts for name, row in table.rows.items()]


def one(name: str, row: PublishedRow, table: Published, tables: dict[str, pl.DataFrame], hardware: str) -> Compared:
    """One published row beside what was measured on one host."""
    tolerance = table.tolerances[row.metric]
    allowed = tolerance * row.value if row.metric in TIMED else tolerance
    if row.without:
        return Compared(name, row, hardware, None, allowed, row.without)
    case = {"model": row.model, "hardware": hardware, "scheme": row.scheme, "compile": row.compile}
    if row.metric in TIMED:
        found = tables[TIMING.name].filter(**case, batch=row.batch)
    else:
        found = tables[QUALITY.name].filter(**case, metric=row.metric)
    if found.is_empty():
        return Compared(name, row, hardware, None, allowed, "the study has no such run")
    measured = found.row(0, named=True)
    value = value_of(row.metric, measured)
    reason = "" if value is not None else measured["reason"] or "not measured"
    return Compared(name, row, hardware, value, allowed, reason)


def value_of(metric: str, measured: dict) -> float | None:
    """A metric of a row of `benchmark.timing` or `benchmark.quality`, in the published unit."""
    if metric == "latency_median_ms":
        return measured["latency_median_ms"]
    if metric == "peak_memory_gib":  # published peaks are counted from before the model is loaded
        peaks = [measured["load_peak_allocated_bytes"], measured["steady_peak_allocated_bytes"]]
        known = [peak for peak in peaks if peak is not None]
        return max(known) / GIB if known else None
    return measured["value"]
