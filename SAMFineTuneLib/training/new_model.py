"""Where a pre-training may write its model."""

from __future__ import annotations

from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import require_writable


def require_new_model(folder: Path, checkpoint: Path, resume: bool) -> None:
    """UserError where a model is, or the checkpoint of another run, that nobody asked to go on with; DiskError where
    nothing can be written."""
    if (folder / "model.json").exists() and not (resume and checkpoint.exists()):
        raise UserError(f"{folder} holds a model already; choose another folder.")
    if not resume and checkpoint.exists():
        raise UserError(f"An unfinished pre-training lies in {folder}; go on with --resume, or choose another folder.")
    require_writable(folder)
