"""What a plan costs: a dry run of the demo's stages for 10^4, 10^5 and 10^6 prompts.

python perf/planning.py [PROMPTS[:SHARD_SIZE] ...]

Each is planned twice: first with an empty cache, as on a new study, then as every cluster job does, with the index of
shards remembered. Seconds are of the CPU beside those of the clock, which a busy machine stretches.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = ("10000:32", "100000:32", "100000:128", "1000000:1024")
OVERLAY = "overlay.yaml"


def write_study(folder: Path, prompts: int, shard_size: int) -> None:
    """A folder that looks like the checkout, with a long prompt CSV and an overlay that names it."""
    for name in ("models", "config.yaml", "profiles"):
        (folder / name).symlink_to(ROOT / name)
    with open(folder / "prompts.csv", "w") as file:
        file.write("prompt\n")
        file.writelines(f"a large red ring at the left on a beige background (number {i})\n" for i in range(prompts))
    (folder / OVERLAY).write_text(f"prompts: {{csv: prompts.csv, shard_size: {shard_size}}}\n")


def plan(folder: Path) -> dict[str, float]:
    """One dry run: seconds of the clock and of the CPU, peak memory in MB, jobs."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]
    command += ["--dry-run", "--quiet", "rules", "--configfile", OVERLAY]
    began = time.perf_counter()
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"HOME": str(folder)})
        _, status, used = os.wait4(process.pid, 0)
        log.seek(0)
        text = log.read()
    if status:
        raise RuntimeError(text[-2000:])
    jobs = re.search(r"^total +(\d+)", text, re.MULTILINE)
    return {
        "clock": time.perf_counter() - began,
        "cpu": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2),
        "jobs": int(jobs[1]) if jobs else 0,
    }


def main(cases: tuple[str, ...]) -> None:
    """Print a line of a table for each case."""
    print("| prompts | shard size | jobs | first plan / s | CPU / s | memory / MB | next plan / s | CPU / s |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases:
        prompts, _, shard_size = case.partition(":")
        with tempfile.TemporaryDirectory() as name:
            write_study(Path(name), int(prompts), int(shard_size or 1024))
            first, again = plan(Path(name)), plan(Path(name))
        cells = [f"{int(prompts):,}", shard_size or "1024", f"{first['jobs']:,}"]
        cells += [
            f"{value:.0f}" for value in (first["clock"], first["cpu"], first["memory"], again["clock"], again["cpu"])
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or CASES)
