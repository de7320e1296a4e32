"""The notebooks run from top to bottom in a kernel, and what they store is small and whole."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

from ditscope.config import STAGES
from ditscope.publish.figures import FIGURES

NOTEBOOK = Path(__file__).parents[2] / "notebooks/sensitivity.ipynb"
STUDY = NOTEBOOK.with_name("study.ipynb")
MOST_BYTES = 200_000


def outputs(notebook) -> list[list[tuple[str, str]]]:
    """Of each code cell the kinds of its outputs: stream, or the richest type of a result."""
    kinds = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [o for o in cell.outputs if o.output_type != "stream" or o.name == "stdout"]
            kinds.append([(o.output_type, max(o.get("data", {"": ""}))) for o in shown])
    return kinds


def test_stored_outputs_are_small_complete_and_portable():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    text = NOTEBOOK.read_text()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(text) < MOST_BYTES
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [kind for output in outputs(notebook) for kind, _ in output]
    assert "error" not in kinds and kinds.count("execute_result") >= 5
    assert '"image/png"' in text and "/tmp" not in text and str(Path.home()) not in text


def executed(path: Path, monkeypatch, folder: Path):
    """A notebook after a run of all its cells in a kernel of this environment; raises at the first cell that fails."""
    for variable in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):  # nothing is left in the home folder
        monkeypatch.setenv(variable, str(folder / variable.lower()))
    notebook = nbformat.read(path, as_version=4)
    manager = KernelManager()
    manager.kernel_spec.argv[0] = sys.executable  # this environment, whatever kernels the machine knows
    client = NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": path.parent}})
    try:
        client.execute()
    finally:
        manager.shutdown_kernel(now=True)  # else it stays, with the model, until pytest ends
    return notebook


@pytest.mark.system
def test_every_cell_runs_and_shows_the_kind_of_thing_that_is_stored(monkeypatch, tmp_path):
    stored = outputs(nbformat.read(NOTEBOOK, as_version=4))
    assert outputs(executed(NOTEBOOK, monkeypatch, tmp_path)) == stored


def test_the_notebook_of_a_study_has_a_figure_of_each_stage_that_has_one():
    notebook = nbformat.read(STUDY, as_version=4)
    nbformat.validate(notebook)
    names = [name for cell in notebook.cells for name in re.findall(r'^redraw\("([\w-]+)"\)$', cell.source)]
    assert [FIGURES[name].stages[0] for name in names] == [
        stage for stage in STAGES if stage in {figure.stages[0] for figure in FIGURES.values()}
    ]
    assert not any(cell.get("outputs") for cell in notebook.cells), "they are those of whoever runs it"


@pytest.mark.system
def test_the_notebook_of_a_study_redraws_it(study, monkeypatch, tmp_path):
    monkeypatch.setenv("DITSCOPE_RESULTS", str(study / "results/tiny"))
    notebook = executed(STUDY, monkeypatch, tmp_path)
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 14, "a figure of each stage"
    assert "network" in str(shown), "the catalog was asked"
