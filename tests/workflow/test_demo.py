"""The demo on a fresh checkout, as `make demo` runs it, and its pages in a browser without a screen."""

import io
import json
import re
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path

import pytest
from PIL import Image

import workflow
from ditscope.config import STAGES
from ditscope.config_files import read_config
from ditscope.core.shards import read_tar
from ditscope.core.tables import concat_tables
from ditscope.publish.figures import FIGURES
from ditscope.shapes.oracle import oracle
from ditscope.shapes.world import parse_caption
from ditscope.video.check import check_page
from ditscope.workflow.estimate import parse_job_stats

pytestmark = [pytest.mark.system, pytest.mark.timeout(2700)]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium on PATH (apt-get install chromium)")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The results of a finished demo with its report."""
    folder = workflow.checkout(tmp_path_factory.mktemp("demo"))
    profile = ("--profile", "local", "--cores", "2", "--resources", "gpu=2", "mem_mb=6000")
    for step in ((), ("--report", "results/demo/report.html")):
        done = workflow.snakemake(folder, *profile, *step, root=folder, timeout=2400)
        assert done.returncode == 0, done.stdout[-6000:]
        if not step:
            jobs = parse_job_stats(done.stdout)
            assert sum(jobs.values()) <= 64
    return folder / "results/demo"


def dom(page: Path, *flags: str) -> str:
    """The page's document after its scripts have run."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000"]
    done = subprocess.run([*command, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def embedded(report: Path) -> dict[str, str]:
    """The data URI of each result of a Snakemake report by its path."""
    entries = re.findall(r'"(results/[^"]+)": (\{"name".*?"data_uri": "(data:[^"]+)")', report.read_text())
    return {path: uri for path, _, uri in entries}


def test_pictures_show_what_the_prompts_ask_for(demo):
    runs = concat_tables(sorted(demo.glob("images/*/shard-?????.parquet")), "images")
    right = []
    for tar in sorted(demo.glob("images/*/*.tar")):
        for sample in read_tar(tar):
            named = {name: value for name, value in parse_caption(sample["json"]["prompt"]).items() if value}
            right.append(named.items() <= oracle(Image.open(io.BytesIO(sample["png"]))).items())
    assert len(right) == len(runs) > 0 and sum(right) / len(right) > 0.8


@needs_browser
def test_every_figure_and_film_of_the_report_is_a_picture(demo, tmp_path):
    results = embedded(demo / "report.html")
    names = {Path(path).stem for path in results}
    assert names >= set(FIGURES) | {"trajectories", "all"}
    films = {path: uri for path, uri in results.items() if "/videos/" in path and path.endswith(".html")}
    for uri in films.values():
        check_page(b64decode(uri.partition("base64,")[2]))
    pictures = {path: uri for path, uri in results.items() if uri.startswith("data:image/")}
    page = tmp_path / "pictures.html"
    images = "".join(f'<img id="{path}" src="{uri}">' for path, uri in pictures.items())
    script = "onload=()=>document.title=JSON.stringify([...document.images].map(i=>[i.id,i.naturalWidth]))"
    page.write_text(f"<title></title><body>{images}<script>{script}</script></body>")
    widths = dict(json.loads(re.search(r"<title>(.*?)</title>", dom(page))[1]))
    assert widths.keys() == pictures.keys() and min(widths.values()) >= 100, widths


@needs_browser
def test_report_opens_with_its_categories(demo):
    text = dom(demo / "report.html")
    config = read_config([])
    for stage in {figure.stages[0] for figure in FIGURES.values()} | {"video"}:
        assert f">{1 + STAGES.index(stage):02d} {stage}<" in text
    assert ">00 answers<" in text and "What was drawn?" in text and 'href="explorer.html"' in text
    assert (demo / "report.html").stat().st_size < 25e6
    captioners = {entry for name in config.trajectories.networks for entry in config.networks[name] if ":" not in entry}
    used = {*config.generate.models, *captioners}
    assert {name for name in config.models if f">{name}<" in text} == used


@needs_browser
def test_explorer_draws_its_first_view_within_its_bytes(demo):
    page = demo / "explorer.html"
    assert page.stat().st_size < 15_000_000
    assert dom(page).count("<img") > 10 and "16 of 16 stages asked for" in dom(page)
