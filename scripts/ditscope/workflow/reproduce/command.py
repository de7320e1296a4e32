"""`ditscope reproduce`: published tables, run again, each value beside what was printed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from ditscope.config import ROOT, Config
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.models.fit import gb, needs, ways
from ditscope.models.memory import parameters
from ditscope.workflow.holding import described, this_machine, to_download
from ditscope.workflow.reproduce.measured import Compared, compared
from ditscope.workflow.reproduce.published import Published, names, overlay_of, read_published, without_run

HEADER = ("row", "published", "measured", "allowed", "within tolerance?")


def reproduce(
    name: Annotated[str, "a published table; none: list them"] = "",
    /,
    dry: Annotated[bool, "check the table's structure and plan its jobs; run nothing"] = False,
    results: Annotated[str, "a finished study to compare; none: results/published-NAME, which is run if need be"] = "",
    profile: Annotated[str, "of Snakemake"] = "local",
) -> None:
    """Run a published table of quantized models again, and set every measured value beside the printed one.

    Each is an overlay experiments/published-NAME.yaml and the printed rows with their tolerances in
    experiments/published/NAME.yaml. A machine that cannot hold its models on a GPU says so in one line.
    Exit status: 0 all that was measured is within its tolerance, 1 something is not, 2 bad input.
    """
    if not name:
        print("\n".join(listed()))
        return
    table = read_published(name)
    config = read_config([overlay_of(table)])
    if lacking := without_run(table, config):
        key, what = next(iter(lacking.items()))
        raise InputError(f"{name}: rows.{key}: {what} in {table.overlay}; add it, or say `without: REASON`")
    if dry:
        print("\n".join([*about(name, table), *dry_run(table, profile)]))
        return
    folder = Path(results) if results else Path("results") / config.experiment
    if not results and not (folder / "benchmarks" / "quality.parquet").is_file():
        if reason := cannot_run(config):
            raise InputError(f"{name}: this machine cannot run it: {reason}")
        run(table, profile)
    rows = compared(table, folder)
    print(as_markdown(name, table, rows), end="")
    raise SystemExit(1 if any(row.within is False for row in rows) else 0)


def listed() -> list[str]:
    """A line for each published table: where it is from, how much it holds, and whether this machine can run it."""
    lines = []
    for name in names():
        table = read_published(name)
        reason = cannot_run(read_config([overlay_of(table)]))
        lines += [*about(name, table), f"  here: {f'cannot run: {reason}' if reason else 'can run'}"]
    return lines


def about(name: str, table: Published) -> list[str]:
    """What a published table is."""
    left = sum(bool(row.without) for row in table.rows.values())
    rows = f"{len(table.rows)} rows" + (f", {left} of which no run measures" if left else "")
    return [f"{name}: {table.source}", f"  {table.hardware}; {rows}; {table.overlay}"]


def cannot_run(config: Config) -> str:
    """Why this machine cannot run a study's benchmark; empty where it can: its models have to fit onto a GPU."""
    machine = this_machine()
    if not machine.gpus_mb:
        return "it has no GPU"
    for name in config.benchmark.models:
        entry = config.models[name]
        wanted = needs(parameters(entry), entry, to_download(entry))
        if not ways(wanted, machine)[0].fits:
            return f"{name} takes {gb(wanted.weights + wanted.working)} on one GPU, and it has {described(machine)}"
        if wanted.disk > machine.disk_mb:
            return f"{name} is {gb(wanted.disk)} to download, and {gb(machine.disk_mb)} of the disk are free"
    return ""


def snakemake(table: Published, profile: str, *more: str) -> Sequence[str]:
    """The command that runs an overlay."""
    command = [sys.executable, "-m", "snakemake", "--profile", profile, "--configfile", str(overlay_of(table))]
    return [*command, "--snakefile", str(ROOT / "Snakefile"), *more]


def dry_run(table: Published, profile: str) -> list[str]:
    """The jobs that Snakemake plans for an overlay."""
    done = subprocess.run(
        snakemake(table, profile, "--dry-run", "--quiet", "rules"), capture_output=True, text=True, env=os.environ
    )
    if done.returncode:
        raise InputError(f"{table.overlay}: cannot be planned: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return ["  every row has its run; the jobs are planned (nothing was run)"]


def run(table: Published, profile: str) -> None:
    """Run an overlay to its end."""
    done = subprocess.run(snakemake(table, profile))
    if done.returncode:
        raise SystemExit(done.returncode)


def as_markdown(name: str, table: Published, rows: Sequence[Compared]) -> str:
    """Published and measured values as a table of Markdown, one per hardware."""
    lines = [f"### {name}", "", f"Published: {table.source} ({table.hardware}). {table.differs}".rstrip(), ""]
    for hardware in dict.fromkeys(row.hardware for row in rows):
        mine = [row for row in rows if row.hardware == hardware]
        measured = [row for row in mine if row.within is not None]
        good = sum(bool(row.within) for row in measured)
        lines += [f"Measured on {hardware}: {good} of {len(measured)} measured rows are within their tolerance.", ""]
        lines += [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}", *map(cells, mine), ""]
    return "\n".join(lines)


def cells(row: Compared) -> str:
    """A row of the table."""
    unit = row.row.metric
    verdict = "yes" if row.within else "**no**" if row.within is False else f"not measured: {row.reason}"
    measured = "" if row.measured is None else f"{row.measured:.4g} ({row.measured / row.row.value - 1:+.1%})"
    return f"| {row.name} ({unit}) | {row.row.value:g} | {measured} | ± {row.allowed:.3g} | {verdict} |"
