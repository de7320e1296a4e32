"""How long the explorer's page takes to open and to move, by states on its map; beside the map as SVG, the obvious way.

    python perf/explorer.py [ROUNDS]

Needs Chromium, and Node.js with the packages of explorer/ (`make explorer` brings both of these).
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from ditscope.core.tables import SCHEMA_VERSION
from ditscope.publish.explorer import write_explorer

FRONT_END = Path(__file__).resolve().parents[1] / "explorer"
SIZES = (1_000, 100_000, 1_000_000)
STATES = 50  # of a run
TIMES = ("ready", "drawn", "frame", "slow_frame")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


def page(folder: Path, count: int) -> Path:
    """A page of a map of `count` states in ten clusters."""
    rng, number = np.random.default_rng(0), np.arange(count)
    label = rng.integers(0, 10, count)
    runs = np.char.add("run", (number // STATES).astype(str))
    keys = {"embedder": "e", "network": "n", "run_id": runs, "sequence_number": (number % STATES).astype("i4")}
    place = {"position": number % STATES, "x": rng.normal(label % 4, 0.4), "y": rng.normal(label // 4, 0.4)}
    tables = {
        "map": pl.DataFrame(keys | place).with_columns(reason=pl.lit(None, pl.String)),
        "clusters": pl.DataFrame(keys).with_columns(label=label, is_medoid=False),
    }
    (folder / "clusters").mkdir(exist_ok=True)
    for stem, table in tables.items():
        name = "clusters" if stem == "clusters" else f"clusters.{stem}"
        metadata = {"table": name, "schema_version": SCHEMA_VERSION}
        table.write_parquet(folder / f"clusters/{stem}.parquet", metadata=metadata)
    out = folder / f"{count}.html"
    write_explorer({"cluster": sorted((folder / "clusters").iterdir())}, out)
    return out


def svg_page(folder: Path, count: int) -> Path:
    """Points as circles of an SVG, moved by its `viewBox`: what a chart library draws."""
    rng = np.random.default_rng(0)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1"/>' for x, y in rng.normal(300, 80, (count, 2)))
    script = (
        "requestAnimationFrame(()=>requestAnimationFrame(()=>{document.documentElement.dataset.ready=1;"
        f"document.querySelector('canvas').dataset.drawn={count}}}));"
        "addEventListener('wheel',e=>{const s=document.querySelector('svg');"
        "s.setAttribute('viewBox',`${e.deltaY} 0 600 600`)})"
    )
    out = folder / f"svg-{count}.html"
    svg = f"<svg width=600 height=600 viewBox='0 0 600 600'>{dots}</svg>"
    out.write_text(f"{svg}<canvas></canvas><script>{script}</script>")
    return out


def main(rounds: int = 5) -> None:
    """Print medians over rounds, every page once a round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pages = [*(page(folder, count) for count in SIZES), svg_page(folder, 20_000)]
        command = ["node", "tests/load.mjs", *map(str, pages)]
        environment = os.environ | {"EXPLORER_BROWSER": BROWSER}
        seen: dict[str, list[dict]] = {}
        for _ in range(rounds):
            done = subprocess.run(command, cwd=FRONT_END, env=environment, capture_output=True, text=True, check=True)
            for row in json.loads(done.stdout):
                seen.setdefault(Path(row["file"]).stem, []).append(row)
        print("page, points drawn, MB; medians in ms: first view, map, frame while moved, 95 % of frames")
        for path in pages:
            rows = seen[path.stem]
            times = [statistics.median(row[f"{key}_ms"] for row in rows) for key in TIMES]
            size = path.stat().st_size / 1e6
            print(path.stem, f"{rows[0]['points']:,}", f"{size:.1f}", *(f"{time:.0f}" for time in times), sep="\t")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
