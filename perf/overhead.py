"""The workflow's overhead in a finished run: time in which no job ran, from Snakemake's own records.

python perf/overhead.py [FOLDER]

FOLDER is where snakemake ran (default: here). Of the latest run only; times are whole seconds at its ends.
"""

import json
import re
import sys
from datetime import datetime
from pathlib import Path

STARTED = re.compile(r"^  Date: (.+)$", re.MULTILINE)
STAMPED = re.compile(r"^\[(\w{3} \w{3} [ \d]\d [\d:]{8} \d{4})\]$", re.MULTILINE)


def jobs(records: Path, start: float, end: float) -> list[tuple[float, float]]:
    """(start, end) of each job that ran in an interval, in seconds since the epoch, once each."""
    found = {}
    for file in records.iterdir():
        record = json.loads(file.read_text())
        if start - 1 <= (record.get("starttime") or 0) <= end + 1:
            found[record["rule"], *record["log"]] = (record["starttime"], record["endtime"])
    return sorted(found.values())


def latest_run(logs: Path) -> tuple[float, float]:
    """Start and end of the latest run of jobs that is logged."""
    for log in sorted(logs.glob("*.log"), reverse=True):
        text = log.read_text()
        if (start := STARTED.search(text)) and (stamps := STAMPED.findall(text)) and "dry-run" not in text:
            end = datetime.strptime(stamps[-1], "%a %b %d %H:%M:%S %Y")
            return datetime.fromisoformat(start[1]).timestamp(), end.timestamp() + 1
    raise SystemExit(f"{logs}: no run of jobs is logged here")


def main(folder: Path) -> None:
    """Print wall time, time with a job running, and the gaps before and between jobs."""
    start, end = latest_run(folder / ".snakemake" / "log")
    ran = jobs(folder / ".snakemake" / "metadata", start, end)
    if not ran:
        raise SystemExit(f"{folder}: Snakemake's records of the latest run are gone")
    gaps, reached = [ran[0][0] - start], ran[0][1]
    for job_start, job_end in ran[1:]:
        gaps.append(max(0.0, job_start - reached))
        reached = max(reached, job_end)
    gaps.append(max(0.0, end - reached))
    wall = end - start
    work = sum(job_end - job_start for job_start, job_end in ran)
    print(f"{len(ran)} jobs in {wall:.0f} s; a job ran for {wall - sum(gaps):.0f} s of them ({work:.0f} s of jobs)")
    print(f"no job ran for {sum(gaps):.1f} s ({sum(gaps) / wall:.1%}): {gaps[0]:.1f} s of planning, ", end="")
    print(f"{sum(gaps[1:-1]):.1f} s between jobs, {gaps[-1]:.1f} s at the end")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
