"""The notebooks run from top to bottom, in their smoke setting, and are committed as they ran."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.once

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
if not NOTEBOOKS:
    pytest.skip("the examples are not here", allow_module_level=True)
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def errors(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own parts
@each
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_VARINIT_SMOKE", "1")
    # The kernel's folder is a temporary one; it finds this checkout, or the installed wheel.
    monkeypatch.setenv("PYTHONPATH", str(path.parents[2]))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert not [o for o in errors(notebook) if o.output_type == "error"]
    assert list(tmp_path.iterdir()) == []


@each
def test_committed_outputs_are_of_one_run_without_errors(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert errors(notebook) == []
    text = path.read_text(encoding="utf-8")
    assert "/tmp/" not in text
    assert "/home/" not in text
    assert len(text) < 1_500_000


@each
def test_first_cells_are_the_badge_and_the_installation(path):
    notebook = nbformat.read(path, as_version=4)
    assert f"/examples/notebooks/{path.name})" in notebook.cells[0].source
    assert "pip install" in notebook.cells[1].source
