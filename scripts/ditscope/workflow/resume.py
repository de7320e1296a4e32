"""Go on with a run whose main process was killed: its jobs on a cluster may still run, and must not meet new ones."""

import getpass
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from ditscope.core.errors import InputError

log = logging.getLogger(__name__)

# The executor names every job of a run alike: [prefix_]uuid.
RUN_ID = re.compile(r"(?:[\w-]+_)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FIELDS = "%F|%j|%Z"  # id (of the whole array), name, working directory


def resume(configfile: list[Path], profile: str = "slurm", options: str = "", wait_s: int = 300) -> None:
    """Cancel the jobs that a killed run left in SLURM's queue, wait until none runs, and start the study again.

    On a machine without SLURM (`--profile local`) there is only Snakemake's lock to take away: jobs end with their run.
    Of all your jobs only those are cancelled that Snakemake submitted from this folder. Refuses while the main process
    still runs on this host: on a cluster with several login nodes, call it where the run was started. `options` are
    more of Snakemake's own, as `--options="--sdm env-modules"`; give what the killed run was given. Ends with an error
    where jobs are still there after `wait_s` seconds.
    """
    folder = Path.cwd()
    if mains := main_processes(folder):
        raise InputError(f"{folder}: a run is alive (process {', '.join(map(str, mains))}); end it, or let it finish")
    if submits(profile):
        clear_queue(folder, wait_s)
    command = [sys.executable, "-m", "snakemake"]
    command += ["--configfile", *map(str, configfile)] if configfile else []
    command += ["--profile", profile]
    for step in (["--unlock"], []):
        done = subprocess.run([*command, *step, *shlex.split(options)])  # last: they may end in `-- targets`
        if done.returncode:
            raise SystemExit(done.returncode)


def submits(profile: str) -> bool:
    """Whether runs with a profile submit jobs to SLURM; one that lies elsewhere than in this folder is taken to."""
    for file in (Path("profiles") / profile / "config.yaml", Path(profile) / "config.yaml"):
        if file.exists():
            return yaml.safe_load(file.read_text()).get("executor") == "slurm"
    return True


def main_processes(folder: Path) -> list[int]:
    """Ids of Snakemake's main processes on this host that work in `folder`; those inside of jobs carry a mode."""
    ids = []
    for process in filter(is_workflow, psutil.process_iter()):
        with suppress(psutil.Error):  # ended meanwhile, or another user's
            if "--mode" not in process.cmdline() and process.cwd() == str(folder):
                ids.append(process.pid)
    return ids


def is_workflow(process: psutil.Process) -> bool:
    """Whether a process is Snakemake: the main one, or the one inside of a cluster's job."""
    try:
        return any(Path(word).name == "snakemake" for word in process.cmdline()[:3])
    except psutil.Error:  # ended meanwhile, or another user's
        return False


def clear_queue(folder: Path, wait_s: float) -> None:
    """Cancel this folder's jobs until the queue has been without any for two seconds."""
    deadline, empty = time.monotonic() + wait_s, 0
    while empty < 3:
        jobs = queued(folder)
        empty = 0 if jobs else empty + 1
        if jobs:
            log.info("cancelling %d jobs of an earlier run: %s", len(jobs), " ".join(jobs))
            slurm("scancel", *jobs)
            if time.monotonic() > deadline:
                raise InputError(
                    f"jobs {' '.join(jobs)} are still there after {wait_s:.0f} s; a node may be lost: once `squeue` "
                    f"shows none of them, call this again"
                )
        time.sleep(1)


def queued(folder: Path) -> list[str]:
    """Ids of your jobs in SLURM's queue, ending ones included, that Snakemake submitted from `folder`."""
    lines = slurm("squeue", "--noheader", f"--format={FIELDS}", "--user", getpass.getuser()).splitlines()
    rows = [line.strip().split("|", 2) for line in lines if line.count("|") >= 2]
    return sorted({i for i, name, place in rows if RUN_ID.fullmatch(name) and os.path.realpath(place) == str(folder)})


def slurm(*command: str) -> str:
    """Output of one of SLURM's commands; InputError where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    except FileNotFoundError:
        raise InputError(f"{command[0]}: not found; on a machine without SLURM give --profile local") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()
        raise InputError(f"{command[0]}: {reason}") from None
