"""Seconds per invocation of each model, from the timing tables that earlier trajectories left."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from ditscope.config import Config
from ditscope.core.errors import InputError
from ditscope.core.settings import decode
from ditscope.core.study_plan import PLAN, read_plan
from ditscope.core.tables import read_table
from ditscope.models.settings import ABOUT
from ditscope.trajectories.networks import Entry, resolve_network, trajectory_index

TIMINGS = "trajectories/*/shard-*.timing.parquet"
COSTS = {
    "entry": pl.String,
    "seconds": pl.Float64,
    "p10": pl.Float64,
    "p90": pl.Float64,
    "invocations": pl.Int64,
    "batch_size": pl.Float64,
    "measured_in": pl.String,
}


def invocation_costs(config: Config, measured: Path) -> pl.DataFrame:
    """What an invocation of each entry of the study's networks took: a row per entry that was measured somewhere.

    Of the study `measured`, and for entries that it lacks of those beside it, the latest first; only where the model,
    its scheme and the compile state have the settings of `config`. `seconds` is the median share of a batch, with its
    10 % and 90 % quantiles; an answer that several runs shared counts once.
    """
    rows: dict[str, dict[str, Any]] = {}
    wanted = entries_of(config)
    for results in studies(measured):
        known = same_entries(config, wanted, results)
        missing = [label for label in known if label not in rows]
        if not missing:
            continue
        files = sorted(results.glob(TIMINGS))
        if not files:
            continue
        timing = pl.concat([read_table(file, "trajectories.timing") for file in files]).filter(~pl.col("shared"))
        for label in missing:
            part = timing.filter(entry=label)
            if len(part):
                rows[label] = {"entry": label, **summary(part), "measured_in": results.name}
    return pl.DataFrame([rows[label] for label in sorted(rows)], schema=COSTS)


def summary(timing: pl.DataFrame) -> dict[str, Any]:
    """Median and quantiles of the seconds of some invocations, how many they are, and their median batch."""
    seconds = timing["seconds"]
    return {
        "seconds": seconds.median(),
        "p10": seconds.quantile(0.1, "linear"),
        "p90": seconds.quantile(0.9, "linear"),
        "invocations": len(timing),
        "batch_size": timing["batch_size"].median(),
    }


def entries_of(config: Config) -> dict[str, Entry]:
    """The entries of all networks that the study follows, by label."""
    networks = [
        resolve_network(name, config.networks[name], config.models, config.schemes)
        for name in config.trajectories.networks
    ]
    return {entry.label: entry for network in networks for entry in network}


def studies(measured: Path) -> Iterator[Path]:
    """The results folder `measured`, then those beside it that have a plan, the latest first."""
    yield measured
    beside = [file for file in measured.absolute().parent.glob(f"*/{PLAN}") if file.parent != measured.absolute()]
    for file in sorted(beside, key=lambda file: (-file.stat().st_mtime, file)):
        yield file.parent


def same_entries(config: Config, wanted: dict[str, Entry], results: Path) -> list[str]:
    """Labels of the entries that a study had with the same settings; none where its plan is of another version."""
    with suppress(InputError):
        other = decode(Config, read_plan(results)["config"])
        if other.trajectories.compile != config.trajectories.compile:
            return []
        entries = entries_of(other)
        return [label for label, entry in wanted.items() if label in entries and alike(entry, entries[label])]
    return []


def alike(one: Entry, other: Entry) -> bool:
    """Whether two entries take the same time: all their settings agree but what they say about the model."""
    settings = [{key: value for key, value in vars(entry.model).items() if key not in ABOUT} for entry in (one, other)]
    return settings[0] == settings[1] and replace(one, model=other.model) == other


def planned_invocations(config: Config) -> dict[str, int]:
    """Invocations of each entry if every run goes to `max_length`; one of fixed seeds may end earlier, in a loop."""
    index = trajectory_index(config.prompts, config.trajectories, config.experiment)
    runs, length = sum(shard["count"] for shard in index), config.trajectories.max_length
    planned: Counter[str] = Counter()
    for name in config.trajectories.networks:
        cycle = config.networks[name]
        for place, label in enumerate(cycle):
            planned[label] += runs * len(range(place, length, len(cycle)))
    return dict(planned)


def trajectory_seconds(planned: dict[str, int], costs: pl.DataFrame) -> float | None:
    """Seconds that all planned invocations take together; None where an entry was measured nowhere."""
    seconds = dict(costs.select("entry", "seconds").iter_rows())
    if not planned or not planned.keys() <= seconds.keys():
        return None
    return sum(count * seconds[label] for label, count in planned.items())


def seconds_beside(results: Path, per_job: float) -> float:
    """Seconds of a measured job of trajectories that are no invocation: imports, loading, writing."""
    files = sorted(results.glob(TIMINGS))
    if not files:
        return per_job
    spent = [read_table(f, "trajectories.timing").filter(~pl.col("shared"))["seconds"].sum() for f in files]
    return max(0.0, per_job - sum(spent) / len(spent))
