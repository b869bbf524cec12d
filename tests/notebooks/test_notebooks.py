"""The notebooks of the docs run from top to bottom, in the kernel that people open them with.

A kernel and not a helper that runs the cells in order: in it the main thread has a running event loop, standard output
is no file, and rich and matplotlib draw into the page, all of which has broken programs that ran well in a shell.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SAID = {
    "reward_and_train.ipynb": ['{"reward": 1.0}\n{"reward": 0.2}\n{"reward": 0.0}\n{"reward": 0.0}', "'after grpo': "],
    "look_into_a_run.ipynb": ["Counter({'step': ", "'reward/total': ", "early: mean reward ", "late: mean reward "],
}
"""Notebook -> what its output says, in order."""


def test_the_table_has_every_notebook():
    assert [path.name for path in NOTEBOOKS] == sorted(SAID)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_output(path):
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


def test_the_notebooks_run_in_a_kernel(tmp_path, monkeypatch):
    """One kernel for all, emptied in between: importing torch and transformers takes longer than all that they do."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebooks = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    together = nbformat.v4.new_notebook()
    for notebook in notebooks:
        together.cells += [*notebook.cells, nbformat.v4.new_code_cell("%reset -f")]
    NotebookClient(together, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    for path, notebook in zip(NOTEBOOKS, notebooks, strict=True):
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        said = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
        place = 0
        for words in SAID[path.name]:
            assert words in said[place:], said
            place = said.index(words, place)
        assert any("image/png" in output.get("data", {}) for output in outputs)
