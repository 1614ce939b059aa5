"""Where a pre-training may write its model, and that one process at a time does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import require_writable
from SAMFineTuneLib.owner import LOCK, Owner, ProcessLock, owning


def require_new_model(folder: Path, checkpoint: Path, resume: bool) -> None:
    """UserError where a pre-training is running, where a model is, or the checkpoint of another run, that nobody asked
    to go on with; DiskError where nothing can be written."""
    if owner := ProcessLock(folder / LOCK).owner:
        raise UserError(_is_running(folder, owner))
    _require_contents(folder, checkpoint, resume)
    require_writable(folder)


@contextmanager
def owning_model(folder: Path, checkpoint: Path, resume: bool) -> Iterator[None]:
    """Own the folder that a pre-training writes into; refused as by `require_new_model`."""
    with owning(folder, lambda owner: _is_running(folder, owner)):
        _require_contents(folder, checkpoint, resume)
        yield


def _is_running(folder: Path, owner: Owner) -> str:
    return f"A pre-training in {folder} is running ({owner}); wait until it is done, or {owner.how_to_stop}."


def _require_contents(folder: Path, checkpoint: Path, resume: bool) -> None:
    if (folder / "model.json").exists() and not (resume and checkpoint.exists()):
        raise UserError(f"{folder} holds a model already; choose another folder.")
    if not resume and checkpoint.exists():
        raise UserError(f"An unfinished pre-training lies in {folder}; go on with --resume, or choose another folder.")
