"""The notebooks run from top to bottom, in their smoke setting, and are committed as they ran."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
if not NOTEBOOKS:
    pytest.skip("the examples are not here", allow_module_level=True)
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import address  # noqa: E402

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
def test_first_cells_are_those_for_the_address_in_pyproject(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert address.written(notebook, path.name, address.address()) == notebook


@each
def test_an_address_gives_a_badge_and_a_source(path):
    plain = json.loads(path.read_text(encoding="utf-8"))
    known = address.written(plain, path.name, "https://github.com/owner/name")
    title, install = ("".join(cell["source"]) for cell in known["cells"][:2])
    link = f"/github/owner/name/blob/main/examples/notebooks/{path.name})"
    assert title.endswith(link)
    assert 'REPOSITORY = "https://github.com/owner/name"' in install
    assert address.written(known, path.name, "") == address.written(plain, path.name, "")


def installed(monkeypatch, missing, repository=""):
    """What the installation cell hands to pip where these modules are missing."""
    cells = address.written({"cells": [{"source": []}, {"source": []}]}, "x.ipynb", repository)
    code = "".join(cells["cells"][1]["source"])
    assert code.count("%pip install --quiet {packages}") == 1
    code = code.replace("%pip install --quiet {packages}", "handed.extend(shlex.split(packages))")
    find = importlib.util.find_spec
    handed = []
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.util, "find_spec", lambda name: None if name in missing else find(name)
        )
        exec(code, {"handed": handed, "shlex": shlex})
    return handed


def test_the_installation_cell(monkeypatch, tmp_path):
    """It installs all that notebooks import: from an address, a wheel or a checkout."""
    monkeypatch.chdir(tmp_path)
    assert installed(monkeypatch, ()) == []
    assert installed(monkeypatch, ("sklearn", "tqdm")) == ["scikit-learn", "tqdm"]
    ours = ("keras_varinit",)
    assert installed(monkeypatch, ours, "https://example.org/x") == [
        "keras-varinit[tensorflow,plot] @ git+https://example.org/x"
    ]
    with pytest.raises(ImportError, match="python -m build"):
        installed(monkeypatch, ours)
    (tmp_path / "examples" / "notebooks").mkdir(parents=True)
    (tmp_path / "keras_varinit").mkdir()
    (tmp_path / "keras_varinit" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "examples" / "notebooks")
    assert installed(monkeypatch, ours) == [f"{tmp_path}[tensorflow,plot]"]
    wheel = tmp_path / "examples" / "notebooks" / "keras_varinit-0.1.0-py3-none-any.whl"
    wheel.touch()
    assert installed(monkeypatch, ours) == [f"{wheel}[tensorflow,plot]"]


@each
def test_the_installation_cell_knows_what_is_imported(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in code_cells(notebook)[1:])
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    known = {"keras", "keras_varinit", "numpy", "matplotlib", "sklearn", "tqdm"}
    assert imported <= known | set(sys.stdlib_module_names)
