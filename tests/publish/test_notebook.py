"""The notebook runs from top to bottom in a kernel, and what it stores is small and whole."""

import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks/sensitivity.ipynb"
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


@pytest.mark.system
def test_every_cell_runs_and_shows_the_kind_of_thing_that_is_stored(monkeypatch, tmp_path):
    for variable in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):  # nothing is left in the home folder
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = outputs(notebook)
    manager = KernelManager()
    manager.kernel_spec.argv[0] = sys.executable  # this environment, whatever kernels the machine knows
    client = NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}})
    try:
        client.execute()  # raises at the first cell that fails
    finally:
        manager.shutdown_kernel(now=True)  # else it stays, with the model, until pytest ends
    assert outputs(notebook) == stored
