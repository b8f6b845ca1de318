"""The notebooks in `examples/` run from the first to the last cell, with little to train."""

from __future__ import annotations

import json

import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "examples"
LESS = '"--max_eval_samples", "4", "--pairs_per_update", "4", "--dataloader_num_workers", "0",'
NAMES = ["finetune_and_look", "compare_two_encoders"]  # the second measures what the first one trains


def outputs(cells) -> tuple[str, int]:
    """Text that cells printed or ended with, and the number of their pictures."""
    found = [one for cell in cells for one in cell.get("outputs", ())]
    text = [one.get("text", "") or one.get("data", {}).get("text/plain", "") for one in found]
    return "\n".join(text), sum("image/png" in one.get("data", {}) for one in found)


@pytest.mark.slow
def test_the_notebooks_run(tmp_path, monkeypatch):
    """A kernel that imports torch, and two updates: the only way to see that a reader's cells run."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("NOTEBOOK_UPDATES", "2")
    monkeypatch.setenv("NOTEBOOK_UTTERANCES", "12")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    first, second = (nbformat.read(FOLDER / f"{name}.ipynb", as_version=4) for name in NAMES)
    both, trained = nbformat.from_dict(first), len(first.cells)
    (training,) = [cell for cell in both.cells if "run_training(" in cell.source]
    training.source = training.source.replace('"--use_cpu",', f'"--use_cpu", {LESS}')
    assert LESS in training.source
    # One kernel, whose names are forgotten in between: a second one would import torch anew.
    both.cells += [nbformat.v4.new_code_cell("%reset -f"), *second.cells]
    nbclient.NotebookClient(both, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said, pictures = outputs(both.cells[:trained])
    assert json.loads((tmp_path / "outputs/notebook/laser_config.json").read_text())["updates"] == 2
    assert "eval_effective_rank" in said
    assert pictures == 3
    said, pictures = outputs(both.cells[trained:])
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
