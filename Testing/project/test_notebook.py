"""The notebook of the Python page runs from start to end, and shows what it promises."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient


def test_the_notebook_runs_and_shows_masks(root, tmp_path):
    notebook = nbformat.read(root / "docs" / "python.ipynb", as_version=4)
    nbformat.validate(notebook)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(root)}})
    client.execute()  # raises for a cell that fails
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output.data for output in outputs if output.output_type == "execute_result"]
    assert any("image/png" in data and "Liver" in data["text/plain"] for data in shown)
    (dice,) = [float(output.text.split()[-1]) for output in outputs if "Dice" in output.get("text", "")]
    assert dice > 0.7
    assert not [output for output in outputs if output.get("name") == "stderr"]
