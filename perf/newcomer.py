"""A newcomer's walk, timed: a fresh clone, the first command of the README, the pages that it leaves.

python perf/newcomer.py [folder]

Clones this repository into an empty folder (default: a temporary one, which stays), runs `make setup` and `make demo`
there, and prints the seconds and bytes of each part as JSON. With a Chromium on PATH each page is opened and a picture
of it taken, beside the clone: the walk ends when the explorer shows something.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("answers.html", "explorer.html", "report.html")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def timed(times: dict[str, float], name: str, *command: str, folder: Path) -> None:
    """Run a command in a folder and note its seconds; its output goes to this terminal."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)
    times[name] = round(time.perf_counter() - start, 1)


def picture(page: Path, out: Path) -> None:
    """The page as the browser shows it after ten seconds of its own time."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1440,900", "--virtual-time-budget=10000"]
    subprocess.run([str(BROWSER), *options, f"--screenshot={out}", page.as_uri()], check=True, capture_output=True)


def walk(folder: Path) -> dict:
    """Clone, set up, run the demo and open its pages in `folder`."""
    times: dict[str, float] = {}
    clone = folder / "ditscope"
    timed(times, "clone", "git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(clone), folder=folder)
    timed(times, "setup", "make", "--no-print-directory", "setup", folder=clone)
    timed(times, "demo", "make", "--no-print-directory", "demo", folder=clone)
    pages = [clone / "results/demo" / name for name in PAGES]
    for page in pages if BROWSER else []:
        start = time.perf_counter()
        picture(page, folder / f"{page.stem}.png")
        times[f"open {page.name}"] = round(time.perf_counter() - start, 1)
    return {
        "seconds": times,
        "total": round(sum(times.values()), 1),
        "bytes": {p.name: p.stat().st_size for p in pages},
    }


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="newcomer-"))
    where.mkdir(parents=True, exist_ok=True)
    print(json.dumps(walk(where.resolve()) | {"folder": str(where)}, indent=2))
