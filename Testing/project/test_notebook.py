"""The notebook of the Python page runs from start to end, and shows what it promises."""

from __future__ import annotations

import os

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

PATIENCE = 300  # s: what a busy machine takes longer for is lost without a word


def test_the_notebook_runs_and_shows_masks(root, tmp_path):
    notebook = nbformat.read(root / "docs" / "python.ipynb", as_version=4)
    nbformat.validate(notebook)
    # Ports are chosen and freed before the kernel binds them, and a server of another test may get one meanwhile.
    config = Config(KernelManager={"transport": "tcp" if os.name == "nt" else "ipc"})
    client = NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(root)}}, config=config,
        timeout=PATIENCE, startup_timeout=PATIENCE, iopub_timeout=PATIENCE,
    )  # fmt: skip
    client.execute()  # raises for a cell that fails
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output.data for output in outputs if output.output_type == "execute_result"]
    assert any("image/png" in data and "Liver" in data["text/plain"] for data in shown)
    (dice,) = [float(output.text.split()[-1]) for output in outputs if "Dice" in output.get("text", "")]
    assert dice > 0.7
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "Warning" not in said, "the kernel's own lines, such as a flush that took long, are not the notebook's"
