"""An analysis of the user's own: what its function is given, what it leaves, and what is refused."""

import polars as pl
import pytest

from ditscope.analyse.settings import Analysis
from ditscope.analyse.stage import run_analysis
from ditscope.config import load_config
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.core.settings import plain
from ditscope.core.tables import read_table
from ditscope.workflow.sources import check_sources

CODE = """
import polars as pl

def analyse(files, scale=1):
    return pl.DataFrame({"stage": list(files), "count": [scale * len(paths) for paths in files.values()]})
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that makes a module of a package in the working folder, and names it."""
    monkeypatch.chdir(tmp_path)

    def make(code, name):
        (tmp_path / f"own_{tmp_path.name}").mkdir(exist_ok=True)
        (tmp_path / f"own_{tmp_path.name}" / f"{name}.py").write_text(code)
        return f"own_{tmp_path.name}.{name}"

    return make


def test_it_gets_the_files_of_its_stages_and_its_settings(own, tmp_path):
    analysis = Analysis(own(CODE, "counts"), ["drift", "embed"], {"scale": 10})
    files = {"drift": [tmp_path / "a"], "embed": [tmp_path / "b", tmp_path / "c"]}
    run_analysis("counts", analysis, files, tmp_path / "counts.parquet")
    table = read_table(tmp_path / "counts.parquet", "analysis.counts")
    assert table.equals(pl.DataFrame({"stage": ["drift", "embed"], "count": [10, 20]}))


@pytest.mark.parametrize(
    ("code", "settings", "refusal"),
    [
        (CODE, {"scael": 2}, r"analyse.analyses.mine.settings: .*unexpected keyword argument 'scael'"),
        ("x = 1", {}, "analyse.analyses.mine.module: `.*` has no function `analyse`; define one"),
        ("def analyse(files): return 1", {}, "returns a int; return a polars DataFrame"),
        ("import no_such_module", {}, "analyse.analyses.mine.module: .* cannot be imported .*no_such_module"),
        ("def analyse(", {}, "analyse.analyses.mine.module: .* cannot be imported"),
    ],
)
def test_what_is_no_analysis_is_refused_in_one_line(own, tmp_path, code, settings, refusal):
    module = own(code, f"wrong{abs(hash((code, str(settings))))}")
    with pytest.raises(InputError, match=refusal):
        run_analysis("mine", Analysis(module, ["drift"], settings), {"drift": []}, tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("name", "change", "refusal"),
    [
        ("mine", {"module": "mine"}, "module: `mine` names no package; write package.module"),
        ("mine", {"stages": ["publish"]}, "analyse.analyses.mine.stages: `publish` is not a stage that comes before"),
        ("mine", {"stages": ["drfit"]}, "did you mean `drift`?"),
        ("mine", {}, "analyse.analyses.mine.module: no module `no_package.mine` here"),
        ("image-grid", {}, "analyse.analyses.image-grid: a figure of the library has this name"),
    ],
)
def test_config_refuses_it_before_work_starts(name, change, refusal):
    entry = {"module": "no_package.mine", "stages": ["drift"]} | change
    with pytest.raises(InputError, match=refusal):
        check_sources(load_config(plain(read_config([])) | {"analyse": {"analyses": {name: entry}}}))
