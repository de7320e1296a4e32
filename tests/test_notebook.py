"""The notebook runs from top to bottom, and what it stores is small and whole."""

import ast
import os
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks/sensitivity.ipynb"
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def cells() -> list:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_stored_outputs_are_small_complete_and_portable(cells):
    text = NOTEBOOK.read_text()
    assert len(text) < MOST_BYTES
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds and kinds.count("execute_result") >= 5
    assert '"image/png"' in text and "/tmp" not in text and str(Path.home()) not in text


@pytest.mark.system
def test_every_cell_runs_in_order(cells, monkeypatch, tmp_path):
    """In one namespace, as a kernel would, from the notebook's folder; a cell that showed something still does."""
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scope: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        body = ast.parse(cell.source).body
        shown = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), scope)
        value = eval(compile(ast.Expression(shown.value), f"cell {number}", "eval"), scope) if shown else None
        stored = any(output.output_type == "execute_result" for output in cell.outputs)
        assert (value is not None) == stored, f"cell {number} shows another kind of result than is stored"
    assert set(scope["table"]["metric"]) == {"psnr_db", "sqnr_db", "relative_l2", "image_rms"}
    assert scope["made"]["predicted"] < scope["made"]["uniform"]["predicted"]
    assert os.listdir(tmp_path)
