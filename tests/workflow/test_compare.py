"""`ditscope compare`: what it says of two experiments against what was changed in one of them."""

import json
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser

import polars as pl
import pytest

from ditscope.cli import main
from ditscope.core.errors import InputError
from ditscope.core.tables import write_table
from ditscope.workflow.compare.experiments import comparison, is_timing, study_folder
from ditscope.workflow.compare.page import as_html
from ditscope.workflow.compare.tables import compare_tables, keys_of
from ditscope.workflow.compare.text import as_text
from workflow import ROOT

HOSTILE = "<script>alert(1)</script>\x1b[31m\"'&"


@pytest.fixture
def pair(study, tmp_path):
    """The tiny study and a copy of it to be changed."""
    copy = tmp_path / "copy"
    shutil.copytree(study / "results/tiny", copy)
    return study / "results/tiny", copy


def change_plan(folder, change):
    plan = json.loads((folder / "plan.json").read_text())
    change(plan)
    (folder / "plan.json").write_text(json.dumps(plan))


def table(both, name):
    return next(table for table in both.tables if table.name == name)


# Of tables -----------------------------------------------------------------------------------------------------------


def test_rows_are_matched_by_their_keys_and_numbers_are_compared():
    a = pl.DataFrame({"layer": ["q", "q", "k", "k"], "bits": [2, 4, 2, 4], "error": [1.0, 2.0, 3.0, 4.0]})
    b = a.reverse().with_columns(error=pl.Series([4.0, 3.5, 2.25, 1.0])).vstack(a.head(1))
    b = b.with_columns(bits=pl.Series([4, 2, 4, 2, 8]))
    difference = compare_tables("t", a, b)
    assert (difference.keys, difference.rows, difference.only) == (("layer", "bits"), (4, 5), (0, 1))
    (column,) = difference.columns
    assert (column.column, column.unlike, column.at) == ("error", 2, "layer k, bits 2")
    assert (column.largest, column.values) == (0.5, ("3", "3.5"))
    assert column.median == statistics.median([0.0, 0.25, 0.5, 0.0])


def test_names_that_differ_everywhere_match_no_rows():
    """Another model's table is compared layer by layer, though no row has the same model."""
    a = pl.DataFrame({"model": ["a", "a"], "layer": ["q", "k"], "hash": ["1", "2"], "n": [1, 2]})
    b = a.with_columns(model=pl.lit("b"), hash=pl.Series(["3", "4"]), n=pl.Series([1, 9]))
    assert keys_of(a, b) == ["layer"]
    assert {c.column: c.largest for c in compare_tables("t", a, b).columns} == {"model": None, "hash": None, "n": 7.0}


def test_rows_that_nothing_tells_apart_are_matched_in_order():
    a = pl.DataFrame({"run": ["x", "x", "y"], "birth": [0.0, 1.0, 2.0]})
    difference = compare_tables("t", a, a.with_columns(birth=pl.Series([0.0, 1.5, 2.0])).head(2))
    assert (difference.keys, difference.only) == (("run", "row in order"), (1, 0))
    assert [column.largest for column in difference.columns] == [0.5]
    assert compare_tables("t", a.select("birth"), a.select("birth")).same


def test_values_that_are_no_numbers_are_counted():
    a = pl.DataFrame(
        {"k": ["a", "b", "c"], "x": [1.0, float("nan"), None], "v": [[1.0], [2.0], []], "only": [1, 2, 3]},
    )
    assert compare_tables("t", a, a).same
    b = a.drop("only").with_columns(x=pl.Series([None, float("nan"), 4.0]), v=pl.Series([[1.0], [3.0], []]))
    difference = compare_tables("t", a, b)
    assert difference.columns_only == (("only",), ())
    assert {c.column: (c.unlike, c.largest) for c in difference.columns} == {"x": (2, None), "v": (1, None)}
    (other,) = compare_tables("t", a.select("k", "x"), a.select("k", pl.col("x").cast(pl.String))).columns
    assert other.values == ("Float64", "String")
    endless = a.select("k", x=pl.lit(float("inf")))
    assert compare_tables("t", endless, endless).same
    assert compare_tables("t", a.head(0), a.head(0)).same


# Of experiments ------------------------------------------------------------------------------------------------------


def test_an_experiment_differs_from_itself_in_nothing(pair):
    for both in (comparison(pair[0], pair[0]), comparison(*pair)):
        assert both.same and all(t.same for t in both.tables) and all(f.same for f in both.figures)
        assert len(both.tables) > 30 and len(both.figures) > 20
        text = as_text(both)
        assert len(text.splitlines()) == 3 and "Nothing differs" in text


def test_what_was_changed_is_said(pair):
    a, b = pair

    def changes(plan):
        plan["config"]["experiment"] = "copy"
        plan["config"]["models"]["shapes-flux"]["steps"] = 8
        del plan["config"]["schemes"]["int4"]
        plan["targets"] = {
            stage: [file.replace("results/tiny/", "results/copy/") for file in files]
            for stage, files in plan["targets"].items()
        }

    change_plan(b, changes)
    drift = pl.read_parquet(b / "drift/drift.parquet")
    moved = drift["euclidean"].to_list()
    moved[3] += 2.0
    write_table(drift.with_columns(euclidean=pl.Series(moved)).head(-2), b / "drift/drift.parquet", "drift")
    timing = pl.read_parquet(b / "benchmarks/benchmark.timing.parquet").with_columns(pl.col("load_seconds") + 1)
    write_table(timing, b / "benchmarks/benchmark.timing.parquet", "benchmark.timing")
    pl.read_parquet(b / "sensitivity/sensitivity.parquet").write_parquet(
        b / "sensitivity/sensitivity.parquet", metadata={"table": "sensitivity", "schema_version": "99"}
    )
    (b / "topology/entropy.parquet").unlink()
    (b / "clusters/map.parquet").write_bytes(b"PAR1")
    (b / "figures/drift-curves.svg").unlink()
    (b / "figures/block-grid.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    both = comparison(a, b)
    settings = {key: values for key, *values in both.settings}
    assert settings["models.shapes-flux.steps"] == ["4", "8"]
    assert settings["schemes.int4.kind"] == ["intx-weight-only", None] and "experiment" not in settings
    changed = {t.name for t in both.tables if not t.same}
    lost = "file clusters/map.parquet of B"
    assert changed == {"drift", "benchmark.timing", "sensitivity", "topology.entropy", "clusters.map", lost}
    assert table(both, "drift").only == (2, 0)
    (column,) = table(both, "drift").columns
    assert (column.column, column.unlike, column.largest, column.median) == ("euclidean", 1, 2.0, 0.0)
    assert re.search(r"schema version \d+ in A and 99 in B", table(both, "sensitivity").note)
    assert table(both, "topology.entropy").note == "only in A"
    assert [t.name for t in both.tables if is_timing(t) and not t.same] == ["benchmark.timing"]
    assert {f.name for f in both.figures if not f.same} == {"drift-curves", "block-grid"}
    text = as_text(both)
    assert re.search(r"B is not finished: topology: 1 of \d+ results are missing", text)
    assert text.index("Tables that differ") < text.index("  drift: ") < text.index("Durations that differ")
    assert "drift-curves: only in A" in text


def test_a_study_that_has_only_begun_can_be_compared(pair):
    a, b = pair
    for folder in ("figures", "benchmarks", "sensitivity", "captures", "images"):
        shutil.rmtree(b / folder)
    both = comparison(a, b)
    assert {"generate", "capture", "benchmark", "sensitivity", "publish"} <= set(both.sides[1].missing())
    assert table(both, "images").note == table(both, "benchmark").note == "only in A"
    assert all(figure.files[1] is None for figure in both.figures)
    assert "A: none" not in as_html(both) and as_html(both).count("B: none") == len(both.figures)


def test_a_plan_of_another_version_is_compared_as_it_stands(pair):
    a, b = pair
    change_plan(b, lambda plan: plan["config"].update({"speed": "fast"}))
    assert ("speed", None, "fast") in comparison(a, b).settings
    change_plan(b, lambda plan: plan.pop("config"))
    with pytest.raises(InputError, match="has no config; run the study again"):
        comparison(a, b)


class Page(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.said = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        assert not any(key.startswith("on") for key, _ in attrs)

    def handle_data(self, data):
        self.said.append(data)


def test_hostile_texts_stay_texts(pair):
    a, b = pair
    change_plan(b, lambda plan: plan["config"]["prompts"].update({"csv": HOSTILE}))
    shard = pl.read_parquet(b / "prompts/shard-00000.parquet").with_columns(prompt=pl.lit(HOSTILE))
    write_table(shard, b / "prompts/shard-00000.parquet", "prompts")
    both = comparison(a, b)
    assert "\x1b" not in as_text(both)
    page = Page(as_html(both))
    assert "script" not in page.tags and "\x1b" not in as_html(both)
    assert sum("<script>alert(1)</script>" in text for text in page.said) == 2
    assert page.sources and all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)


def test_command(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "other"):
        shutil.copytree(pair[0], tmp_path / "results" / name)
    assert main(["compare", "tiny", "results/other", "--html", "page.html"]) == 0
    assert "Nothing differs" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().endswith("</html>\n")
    assert main(["compare", "tiny", "othr"]) == 2
    assert "did you mean `other`?" in capsys.readouterr().err
    assert study_folder("tiny").as_posix() == "results/tiny"


def test_comparing_imports_nothing_heavy():
    code = "import sys, ditscope.workflow.compare.command; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT / "scripts").split()
    assert not {"torch", "matplotlib", "diffusers", "sklearn", "duckdb", "snakemake"} & set(loaded)
