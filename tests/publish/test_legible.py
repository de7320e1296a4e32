"""Figures in print: every text of every figure can be read at the printed size, and says of how many it is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import polars as pl
import pytest

from ditscope.core.schema import STAGE_OF, tables_of
from ditscope.core.shards import png_bytes, write_tar
from ditscope.core.study_plan import read_plan
from ditscope.core.tables import read_table
from ditscope.layer_maps import block_of, part_of
from ditscope.publish.draw import draw_figures, function_of, size_of
from ditscope.publish.figures import FIGURES, available
from ditscope.publish.printing import figures
from ditscope.publish.settings import Publish
from ditscope.style import NARROW, SMALL, WIDTH, columns, save
from drawn_texts import faults, lines_of

HOSTILE = [
    "</script><b>&",
    r"$x^$ \frac{",
    "\u0627\u0644\u0644\u0648\u0646 \u05d0\u05d3\u05d5\u05dd",
    "a\x00b\x08c\ud7ff",
    "word " * 14_000,
]
BLOCKED = """
import builtins, sys
whole = builtins.__import__
def without(name, *rest, **names):
    if name.partition(".")[0] in ("torch", "diffusers", "transformers", "sklearn"):
        raise ImportError(f"{name} is not here")
    return whole(name, *rest, **names)
builtins.__import__ = without
"""
# Tables that no figure draws, and why.
UNDRAWN = {
    "analysis": "of the user's own",
    "images": "what the pictures are made of", "prompts": "input", "prompts.runs": "input",
    "captures": "an index of folders", "capture_statistics": "sizes of tokens, which blocks.residual holds too",
    "capture_frames": "of videos, which the demo has not",
    "sensitivity.samples": "what the values of sensitivity are means of",
    **dict.fromkeys(("refine.assignments", "refine.samples", "refine.neighbours", "refine.tsne"), "rows of one sample"),
    "benchmark.culprit": "a command prints it, and no study has it",
    "sensitivity.formats": "of budgets that name formats: what a plan chose of it stands in the plan",
    "calibration": "an index of samples", "answers": "sentences of the front page",
    "refine.gallery": "an index of pictures", "refine.diagnostics": "single numbers; the record judges by them",
    "drift.lifetimes": "summed up by drift.survival",
    "benchmark.run": "joined into benchmark", "benchmark.checkpoints": "sizes of files",
    "benchmark.recommendations": "advice in words",
}  # fmt: skip


def files_of(study: Path) -> dict[str, list[Path]]:
    """What each stage of the tiny study left."""
    targets = read_plan(study / "results/tiny")["targets"]
    return {stage: [study / path for path in paths] for stage, paths in targets.items() if paths}


@pytest.fixture(scope="module")
def files(study):
    return files_of(study)


def drawn(name, files):
    return function_of(name)({stage: files[stage] for stage in FIGURES[name].stages})


@pytest.mark.parametrize("count", [2, pytest.param(1, marks=pytest.mark.system)])
@pytest.mark.parametrize("category", sorted({figure.category for figure in FIGURES.values()}))
def test_no_text_is_small_cut_off_or_hidden(category, count, files):
    """Sizes are those of print: figures are one or two columns wide, and are not scaled."""
    with columns(count):
        for figure in available(set(files)):
            if figure.category == category:
                canvas, _ = drawn(figure.name, files)
                assert canvas.get_figwidth() in ({NARROW, WIDTH} if count == 2 else {NARROW}), figure.name
                assert not faults(canvas), figure.name


def test_faults_are_found():
    """A small line, one that is cut off, one that hides another, and a formula, whose exponents are small."""
    figure = matplotlib.figure.Figure(figsize=(3, 2))
    for x, y, size, text in (
        (0.1, 0.5, 5.9, "small"),
        (0.95, 0.2, 8, "cut off"),
        (0.3, 0.8, 8, "one"),
        (0.31, 0.8, 8, "two"),
    ):
        figure.text(x, y, text, fontsize=size)
    figure.text(0.5, 0.4, "$10^3$", parse_math=True)
    found = faults(figure)
    assert len(found) == 4 and [fault.split(":")[0] for fault in found] == ["5.9 pt", "7 pt", "cut off", "overlap"]
    assert [line.size for line in lines_of(figure)] == [5.9, 8, 8, 8, 7]


def test_a_pdf_has_the_sizes_that_were_drawn(files, tmp_path):
    with matplotlib.rc_context({"pdf.compression": 0}):
        for name in ("sensitivity-layers", "drift-curves", "benchmark-pareto"):
            save(*drawn(name, files), tmp_path / name, ["pdf"], 80)
            sizes = [float(size) for size in re.findall(rb"/\S+ ([\d.]+) Tf", (tmp_path / f"{name}.pdf").read_bytes())]
            assert len(sizes) > 9 and min(sizes) >= SMALL, name


def test_every_table_of_an_analysis_is_drawn(files, monkeypatch):
    read = set()

    def reading(path, name, *columns):
        read.add(name)
        return read_table(path, name, *columns)

    monkeypatch.setattr("ditscope.core.tables.read_table", reading)
    for module in [name for name in sys.modules if re.fullmatch(r"ditscope\.\w+\.\w*figures", name)]:
        if hasattr(sys.modules[module], "read_table"):
            monkeypatch.setattr(f"{module}.read_table", reading)
    for figure in available(set(files)):
        drawn(figure.name, files)
    declared = {table.name for stage in set(STAGE_OF.values()) for table in tables_of(stage)}
    analyses = {name for name in declared if not name.startswith(tuple(UNDRAWN)) and ".timing" not in name}
    assert sorted(analyses - read) == []


def test_equal_tables_give_equal_bytes_on_another_path(study, tmp_path):
    """In another folder, by another number of processes."""
    names = ["image-grid", "sensitivity-heatmap", "drift-curves", "cluster-map"]
    results = tmp_path / "elsewhere/results/tiny"
    results.mkdir(parents=True)
    files = files_of(study)
    copied = {}
    for stage in ("generate", "sensitivity", "drift", "cluster"):
        copied[stage] = [results / path.relative_to(study / "results/tiny") for path in files[stage]]
        for source, copy in zip(files[stage], copied[stage], strict=True):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    for given, out, processes in ((files, tmp_path / "results/tiny/figures", 2), (copied, results / "figures", 3)):
        draw_figures(names, given, out, Publish(dpi=60), processes=processes)
    here = sorted((tmp_path / "results/tiny/figures").iterdir())
    assert len(here) == 4 * len(names) + 1
    for path in here:
        assert path.read_bytes() == (results / "figures" / path.name).read_bytes(), path.name
    index = pl.read_csv(results / "figures/index.csv")
    assert index["figure"].to_list() == names and index["n"].str.starts_with("n = ").all()
    assert index["command"][2] == "ditscope figures results/tiny --only drift-curves"
    svg = (results / "figures/drift-curves.svg").read_text()
    assert "ditscope figures results/tiny --only drift-curves" in svg and index["n"][2] in svg


def test_figures_need_no_torch(study, tmp_path):
    """One figure of each module, by the command, with torch and its kin kept from being imported."""
    shutil.copytree(
        study / "results/tiny", tmp_path / "results/tiny", ignore=shutil.ignore_patterns("figures", "*.duckdb")
    )
    first = {figure.source: figure.name for figure in reversed(available(set(files_of(study))))}
    arguments = ["figures", "results/tiny", "--only", *first.values(), "--formats", "svg"]
    program = f"{BLOCKED}\nfrom ditscope.cli import main\nsys.exit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (tmp_path / "results/tiny/figures").glob("*.svg")} == set(first.values())


def test_a_study_half_done_says_what_is_missing(study, tmp_path, caplog):
    results = tmp_path / "results/tiny"
    results.mkdir(parents=True)
    shutil.copy(study / "results/tiny/plan.json", results)
    shutil.copytree(study / "results/tiny/images", results / "images")
    figures(results, only=["image-grid"], settings=Publish(formats=["png"]))
    assert {path.name for path in (results / "figures").iterdir()} == {"image-grid.png", "image-grid.csv", "index.csv"}
    assert any("drift is not finished: without drift-curves" in text for text in caplog.messages)
    with pytest.raises(Exception, match="--only drift-curves: is not drawn of what this study has left"):
        figures(results, only=["drift-curves"])


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_prompts_are_drawn_as_they_are(tmp_path):
    image = png_bytes(pl.Series([120] * 48).to_numpy().astype("uint8").reshape(4, 4, 3))
    samples = [
        {"__key__": str(i), "png": image, "json": {"prompt_id": str(i), "prompt": prompt, "seed": 0, "model": "m"}}
        for i, prompt in enumerate(HOSTILE)
    ]
    write_tar(samples, tmp_path / "shard.tar")
    figure, data = function_of("image-grid")({"generate": [tmp_path / "shard.tar"]})
    assert not faults(figure) and max(figure.get_size_inches()) < 10
    save(figure, data, tmp_path / "g", ["svg", "pdf"], 60)
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    text = " ".join(root.itertext())
    assert "</script><b>&" in text and r"$x^$ \frac{" in text


def test_sizes_are_counted():
    runs = pl.DataFrame({"network": ["a", "b"], "run_id": ["p/0", "p/0"], "prompts": [3, 8]})
    assert size_of(runs) == "n = 8 prompts, 2 runs, 2 networks; 2 rows"
    assert size_of(pl.DataFrame({"x": [1.0]})) == "n = 1 row"


@pytest.mark.parametrize(
    ("layer", "block", "part"),
    [
        ("transformer_blocks.12.attn.to_out.0", "transformer_blocks 12", "attn.to_out.0"),
        ("time_text_embed.linear_1", "outside the blocks", "time_text_embed.linear_1"),
        ("model.layers.3.mlp", "model.layers 3", "mlp"),
    ],
)
def test_layers_are_grouped_by_their_block(layer, block, part):
    assert block_of(layer) == block and part_of(layer) == part
