"""The notebooks in `examples/` run from the first to the last cell in a kernel of their own, with little to train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "examples"
NAMES = ["finetune_and_look", "compare_two_encoders"]  # the second measures what the first one trains


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


def outputs(cell) -> str:
    """Text that a cell printed or ended with."""
    return "".join(one.get("text", "") or one.get("data", {}).get("text/plain", "") for one in cell.get("outputs", ()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs(name, workplace, monkeypatch):
    """Two kernels that import torch, and two updates: the only way to see that a reader's cells run."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("NOTEBOOK_UPDATES", "2")
    monkeypatch.setenv("NOTEBOOK_UTTERANCES", "12")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(workplace)}}).execute()
    said = "\n".join(outputs(cell) for cell in notebook.cells)
    pictures = sum("image/png" in one.get("data", {}) for cell in notebook.cells for one in cell.get("outputs", ()))
    if name == "finetune_and_look":
        assert json.loads((workplace / "outputs/notebook/laser_config.json").read_text())["updates"] == 2
        assert "eval_effective_rank" in said
        assert pictures == 3
    else:
        assert "fine-tuned" in said
        assert "by speaker" in said
        assert pictures == 1


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert path.stem in NAMES
