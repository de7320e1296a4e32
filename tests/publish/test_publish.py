"""Figures, explorer and catalog: complete registries, hostile captions, readable files."""

import re
from pathlib import Path

import duckdb
import matplotlib
import polars as pl
from PIL import Image

from ditscope.capture.figures import block_grid
from ditscope.capture.files import write_metadata
from ditscope.core.study_plan import read_plan
from ditscope.publish import paper_tables
from ditscope.publish.catalog import table_files, write_catalog
from ditscope.publish.draw import function_of
from ditscope.publish.figures import FIGURES, PAPER_TABLES, available
from ditscope.style import WIDTH, columns, grid, save
from ditscope.trajectories.figures import trajectory_strips
from drawn_texts import faults
from loose_tables import write_loosely
from workflow import snakemake, workdir

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '</script><img src=x onerror=alert(1)> & "quotes" <!-- $\\alpha$'


def test_every_figure_has_a_function_and_a_caption():
    assert all(callable(function_of(name)) for name in FIGURES)
    for name in FIGURES:
        caption = (ROOT / "report" / f"{name}.rst").read_text()
        assert caption.strip().endswith((".", "?"))


def test_every_paper_table_has_a_function():
    assert all(callable(paper_tables.function_of(name)) for name in PAPER_TABLES)


def test_latex_and_markdown_escape():
    table = pl.DataFrame({"a_b": [r"50 % & {x} \ $1 #2 ~ ^ | <i>"], "n": [0.123456]})
    tex = paper_tables.latex(table)
    assert r"50 \% \& \{x\} \textbackslash{} \$1 \#2 \textasciitilde{} \textasciicircum{} | \textless{}i" in tex
    assert r"a\_b & n" in tex and "0.1235" in tex
    assert r"\|" in paper_tables.markdown(table)


def test_only_figures_of_finished_stages_are_asked_for():
    assert [f.name for f in available({"generate"})] == ["image-grid"]
    assert available(set()) == []


def test_saved_figures_are_reproducible(tmp_path):
    for copy in "ab":
        figure, axes = grid(1, 1, width=2)
        axes[0, 0].plot([1, 3, 2])
        save(figure, pl.DataFrame({"y": [1, 3, 2]}), tmp_path / copy, ["svg", "png", "pdf"], 80)
    for kind in ("svg", "png", "pdf", "csv"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes(), kind


def test_figures_do_not_depend_on_what_else_has_set_matplotlib(tmp_path):
    """As a `matplotlibrc` of the user, or another library in the process, may."""
    others = {"font.size": 20, "svg.hashsalt": None, "axes.grid": True, "lines.marker": "o"}
    for name, foreign in (("a", {}), ("b", others)):
        with matplotlib.rc_context(foreign), columns(1):
            figure, axes = grid(1, 1, width=2)
            axes[0, 0].plot([1, 3, 2])
            save(figure, pl.DataFrame({"y": [1, 3, 2]}), tmp_path / name, ["svg", "png", "pdf"], 80)
    for kind in ("svg", "png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes(), kind


def captured(folder: Path, decoded: str, steps: int, doubles: int, singles: int) -> Path:
    """A capture set of one generation as the grid reads it: metadata and, in the folder `decoded`, pictures."""
    blocks = [f"double_block_{i}" for i in range(doubles)] + [f"single_block_{i}" for i in range(singles)]
    intermediates = folder / "g" / "intermediates"
    intermediates.mkdir(parents=True)
    write_metadata({"captured_steps": list(range(steps)), "captured_blocks": blocks, "position": 0}, intermediates)
    for step in range(steps if decoded else 0):
        for block in blocks:
            path = intermediates / decoded / f"step_{step}" / f"{block}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16), (step * 5, 0, 0)).save(path)
    return folder


def test_block_grid_takes_the_first_set_with_decoded_pictures(tmp_path):
    """A set of statistics alone, which sorts first, would be a grid of empty cells."""
    sets = [captured(tmp_path / "all", "", 50, 19, 38), captured(tmp_path / "landmarks", "decoded", 2, 1, 2)]
    figure, data = block_grid({"capture": sets})
    assert data["decoded"].to_list() == [True] * 6
    assert figure.axes[0].get_images()[0].get_array().shape[:2] == (2 * 20, 3 * 28)
    figure, data = block_grid({"capture": [sets[0]]})
    assert data.is_empty() and "No capture set" in figure.texts[0].get_text()
    _, data = block_grid({"capture": [captured(tmp_path / "other", "decoded_x_prev", 1, 1, 1)]})
    assert data["decoded"].all()


def test_block_grid_of_a_deep_network_is_bands_of_pictures_on_one_page(tmp_path):
    """An axis per cell took minutes: 57 blocks and 4 steps are 228."""
    figure, data = block_grid({"capture": [captured(tmp_path, "decoded", 4, 19, 38)]})
    assert len(figure.axes) == 4 and len(data) == 4 * 57 and data["decoded"].all()
    assert figure.get_figwidth() == WIDTH and figure.get_figheight() < 12
    save(figure, data, tmp_path / "grid", ["svg"], 80)


def test_only_the_formats_that_are_asked_for_are_planned(tmp_path):
    overlay, tiny = tmp_path / "o.yaml", ROOT / "experiments" / "tiny.yaml"
    overlay.write_text("publish: {formats: [pdf, png]}\n")
    run = workdir(tmp_path / "run")
    done = snakemake(run, "--cores", "1", "--dry-run", "--configfile", str(tiny), str(overlay), "--", "publish")
    (outputs,) = re.findall(r"^(?:local)?rule figures:.*?output: (.*?)$", done.stdout, re.M | re.S)
    kinds = {Path(name).suffix for name in outputs.split(", ")}
    assert kinds == {".csv", ".pdf", ".png"} and outputs.count("/image-grid.") == 3
    assert "figures/index.csv" in outputs


# Tables whose rows a later job joins into another one, which is in the catalog.
JOINED = {
    "benchmark.run": "benchmark",
    "benchmark.run.timing": "benchmark.timing",
    "benchmark.run.flat": "benchmark.flat_field",
    "calibration.activations.part": "calibration.activations",
}


def test_the_catalog_has_every_table_of_a_finished_study(study, tmp_path):
    results = study / "results" / "tiny"
    plan = read_plan(results)["targets"]
    left = {stage: [study / file for file in files] for stage, files in plan.items()}
    write_catalog(table_files(left), tmp_path / "c.duckdb")
    files = [p for p in results.rglob("*.parquet") if ".partial" not in p.relative_to(results).parts]
    names = {pl.read_parquet_metadata(p)["table"] for p in files}
    assert {"images", "capture_statistics"} < names
    with duckdb.connect(tmp_path / "c.duckdb", read_only=True) as database:
        catalog = {name for (name,) in database.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        assert catalog == {JOINED.get(name, name).replace(".", "_") for name in names}
        rows = {}
        for file in results.glob("images/*/*.parquet"):
            if ".timing" not in file.name:
                rows[file] = len(pl.read_parquet(file))
        assert database.execute("SELECT count(*) FROM images").fetchone() == (sum(rows.values()),)


def test_captions_are_drawn_as_plain_text(tmp_path):
    """A prompt or a caption with dollar signs is no formula: one that is none would stop the figure."""
    texts = [r"5 $ \frac{ a $", r"$ _ $ \x"]
    run = {"network": ["n"] * 2, "run_id": ["r"] * 2, "prompt": texts[:1] * 2, "sequence_number": [-1, 1]}
    states = pl.DataFrame(run | {"type": ["TEXT"] * 2, "output_text": texts, "output_key": ["a", "b"]})
    write_loosely(states, tmp_path / "shard-00000.parquet", "trajectories")
    figure, data = trajectory_strips({"trajectories": [tmp_path / "shard-00000.parquet"]})
    shown = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert shown[0].startswith(f"n\n{texts[0]}") and shown[1:] == texts[1:] and not faults(figure)
    save(figure, data, tmp_path / "t", ["png"], 50)
