"""The paper of a study: compiled by Typst and by LaTeX, and read back."""

import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from ditscope.core.errors import InputError
from ditscope.core.study_plan import read_plan
from ditscope.publish.draw import draw_figures
from ditscope.publish.figures import PAPER_TABLES
from ditscope.publish.paper import paper
from ditscope.publish.paper_tables import latex, write_paper_tables
from ditscope.publish.settings import Publish
from workflow import ROOT

pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed: `make setup`")
HOSTILE = "#panic() $x$ *a* @b <c> \\ _d_"


def words(pdf: Path | bytes) -> str:
    """The text of a PDF, on one line."""
    return " ".join(" ".join(page.extract_text() for page in pypdf.PdfReader(pdf).pages).split())


@pytest.fixture
def project(tmp_path, study):
    """A project with the template, two figures (one of several pages) and every table of the tiny study."""
    targets = read_plan(study / "results/tiny")["targets"]
    files = {stage: [study / path for path in paths] for stage, paths in targets.items() if paths}
    results = tmp_path / "results/tiny"
    draw_figures(["image-grid", "sensitivity-layers"], files, results / "figures", Publish(formats=["pdf"]))
    write_paper_tables(files, results / "tables")
    shutil.copytree(ROOT / "paper", tmp_path / "paper")
    return tmp_path


def test_the_paper_shows_every_figure_table_and_caption(project, monkeypatch):
    pytest.importorskip("typst", reason="typst is not installed: `make setup`")
    results = project / "results/tiny"
    table = pl.read_csv(results / "tables/drift.csv").with_columns(network=pl.lit(HOSTILE))
    table.write_csv(results / "tables/drift.csv")
    monkeypatch.chdir(project)
    paper(Path("results/tiny"), title="A study of shapes")
    text, index = words(results / "paper.pdf"), pl.read_csv(results / "figures/index.csv")
    assert "A study of shapes" in text and HOSTILE.replace(" ", "") in text.replace(" ", "")
    for row in index.iter_rows(named=True):
        assert row["figure"] in text and row["n"] in text and row["command"] in text
    assert "a small blue star" in text, "a prompt of the figure itself: text, not dots"
    assert all(f"{name}.csv" in text for name in PAPER_TABLES)
    assert "transformer_blocks.4.norm1.linear" in text, "the last page of the full list"
    first = (results / "paper.pdf").read_bytes()
    paper(Path("results/tiny"), title="A study of shapes")
    assert (results / "paper.pdf").read_bytes() == first


def test_a_paper_without_its_figures_is_one_line(project):
    pytest.importorskip("typst", reason="typst is not installed: `make setup`")
    results = project / "results/tiny"
    (results / "figures/image-grid.pdf").unlink()
    with pytest.raises(InputError, match=r"image-grid.pdf is missing \(1 of 2\); draw them with `ditscope figures"):
        paper(results, project / "paper/main.typ")
    (results / "figures/index.csv").unlink()
    with pytest.raises(InputError, match="no figures here; draw them"):
        paper(results, project / "paper/main.typ")
    wrong = project / "wrong.typ"
    wrong.write_text("#nothing()")
    draw = results / "figures/index.csv"
    draw.write_text("figure\n")
    with pytest.raises(InputError, match=r"wrong\.typ: unknown variable: nothing"):
        paper(results, template=wrong)


@pytest.mark.system
def test_the_booktabs_tables_compile(project):
    """By Debian's TeX, which continuous integration installs."""
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex here: Debian's texlive-latex-recommended has it")
    results = project / "results/tiny"
    signs = r"50 % & {x} \ $1 #2 ~ ^ | <i>"
    hostile = pl.DataFrame({"model_a": [signs, "H\u2080 \u00e9 \u7d05"], "n": [0.5, 2.0]})
    (results / "tables/clusters.tex").write_text(latex(hostile))
    command = [
        "pdflatex",
        "-halt-on-error",
        "-interaction=nonstopmode",
        r"\def\results{../results/tiny}\input{tables.tex}",
    ]
    done = subprocess.run(command, cwd=project / "paper", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    text = words(project / "paper/tables.pdf")
    assert all(name in text for name in PAPER_TABLES) and "50 % & {x}" in text
