"""What a study will take: jobs from a dry run, hours and disk from the measured unit costs of an earlier study."""

import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl

from ditscope.config import Config
from ditscope.config_files import read_config
from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.paths import InputFolder, OutputFile
from ditscope.core.settings import decode
from ditscope.core.study_plan import read_plan
from ditscope.workflow.invocation_costs import (
    invocation_costs,
    planned_invocations,
    seconds_beside,
    trajectory_seconds,
)

TRAJECTORIES = "trajectory_shard"
JOB_LINE = re.compile(r"^(\w+)\s+(\d+)\s*$")


def estimate(
    configfile: list[Path], measured: InputFolder = Path("results/demo"), out: OutputFile | None = None
) -> None:
    """Print jobs, hours and bytes of a study, stage by stage, before it is submitted.

    Jobs come from a dry run with the overlays `configfile`; hours and bytes per job are medians over the study
    `measured`: run a few prompts of the same models first (`prompts: {limit: 8}`) and give its results folder. A rule
    that was never measured says so instead of a number. Hours of trajectories are those of their invocations, by the
    seconds that each model took in `measured`, or in the studies beside it.
    """
    config, jobs, costs = read_config(configfile), planned_jobs(configfile), measured_costs(measured)
    invocations = invocation_costs(config, measured)
    table = with_trajectories(estimate_table(jobs, costs), config, measured, invocations)
    others = unmeasured_models(config, read_plan(measured)["config"])
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        print(table)
        if len(invocations):
            print(
                "Seconds per invocation of the networks' models (a share of its batch; median, 10 % and 90 % quantile):"
            )
            print(invocations)
    known = table.filter(pl.col("hours").is_not_null())
    print(
        f"{table['jobs'].sum()} jobs; measured part: {known['hours'].sum():.2f} job-hours, of these "
        f"{known.filter('gpu')['hours'].sum():.2f} on a GPU where there is one; {known['bytes'].sum() or 0:,} bytes"
    )
    if others:
        print(
            f"not as measured in {measured}: {', '.join(others)}. Its hours, bytes and memory say little of them; run "
            "a few of their prompts first and give that study as --measured"
        )
    if out:
        write_text(out, table.write_csv())


def with_trajectories(table: pl.DataFrame, config: Config, measured: Path, costs: pl.DataFrame) -> pl.DataFrame:
    """The table with hours of trajectories by their invocations, where each of the networks' models was measured."""
    planned = table.filter(rule=TRAJECTORIES)
    seconds = trajectory_seconds(planned_invocations(config), costs) if len(planned) else None
    if seconds is None:
        return table
    jobs, hours = planned.select("jobs", "hours").row(0)
    beside = jobs * seconds_beside(measured, hours * 3600 / jobs) if hours is not None else 0.0
    new = pl.when(rule=TRAJECTORIES).then((seconds + beside) / 3600).otherwise("hours")
    return table.with_columns(new.alias("hours"))


def unmeasured_models(config: Config, measured: dict[str, Any]) -> list[str]:
    """Selected models that the measured study, by its plain config, did not run with the same settings."""
    known = decode(Config, measured)
    ran = set(known.selected_models())
    return [n for n in config.selected_models() if n not in ran or known.models[n] != config.models[n]]


def planned_jobs(overlays: list[Path]) -> dict[str, int]:
    """Jobs of each rule that the workflow would run now, from Snakemake's dry run."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", "--forceall"]
    command += ["--configfile", *map(str, overlays)] if overlays else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise InputError(f"the dry run failed: {last.strip()}")
    return parse_job_stats(done.stdout + done.stderr)


def parse_job_stats(text: str) -> dict[str, int]:
    """The `Job stats` table of a dry run as rule -> number of jobs, without the total."""
    jobs = [m for line in text.splitlines() if (m := JOB_LINE.match(line.strip()))]
    return {m[1]: int(m[2]) for m in jobs if m[1] != "total"}


def measured_costs(results: Path) -> dict[str, dict]:
    """Median seconds, peak memory and bytes per job of each rule of a finished study."""
    plan = read_plan(results)
    costs: dict[str, dict] = {}
    for rule, patterns in plan["rules"].items():
        files = [file for pattern in patterns["benchmarks"] for file in results.glob(pattern)]
        rows = [row for file in files for row in read_benchmark(file)]
        if not rows:
            continue
        sizes = [size_of(path) for pattern in patterns["outputs"] for path in results.glob(pattern)]
        costs[rule] = {
            "seconds": statistics.median(row["s"] for row in rows),
            "memory": max(row["max_rss"] for row in rows),
            "bytes": sum(sizes) // len(rows),
            "gpu": patterns["gpu"],
        }
    return costs


def read_benchmark(file: Path) -> list[dict]:
    """Rows of one of Snakemake's benchmark files; `-` (not sampled) becomes 0."""
    table = pl.read_csv(file, separator="\t", infer_schema=False)
    return [
        {k: float(row[k]) if row[k] not in ("-", "NA", None) else 0.0 for k in ("s", "max_rss")}
        for row in table.to_dicts()
    ]


def size_of(path: Path) -> int:
    """Bytes of a file or of everything under a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def estimate_table(jobs: dict[str, int], costs: dict[str, dict]) -> pl.DataFrame:
    """One row per rule: jobs, gpu, hours, bytes, peak_memory_mib; null where nothing was measured."""
    rows = [
        {
            "rule": rule,
            "jobs": count,
            "gpu": costs[rule]["gpu"] if rule in costs else None,
            "hours": count * costs[rule]["seconds"] / 3600 if rule in costs else None,
            "bytes": count * costs[rule]["bytes"] if rule in costs else None,
            "peak_memory_mib": costs[rule]["memory"] if rule in costs else None,
        }
        for rule, count in sorted(jobs.items())
    ]
    schema = {"rule": pl.String, "jobs": pl.Int64, "gpu": pl.Boolean, "hours": pl.Float64, "bytes": pl.Int64}
    return pl.DataFrame(rows, schema=schema | {"peak_memory_mib": pl.Float64})
