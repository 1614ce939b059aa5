"""Downloads, verifies, recognises and installs a published model."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.download.download_file import Progress, discard_partial, download
from SAMFineTuneLib.models.download.manifest import PublishedModel
from SAMFineTuneLib.models.formats.import_model import examine
from SAMFineTuneLib.models.optional_packages import require
from SAMFineTuneLib.models.spec import ModelFolder
from SAMFineTuneLib.models.store import Store


def check_possible(store: Store, entry: PublishedModel) -> None:
    """Raise UserError when a download could not lead to a usable model; call it before downloading."""
    store.check_new(entry.id)
    if not entry.downloadable:
        raise UserError(f"{entry.name} cannot be downloaded by this program. {entry.how_to_get} "
                        f"The page is {entry.source}")
    require(f"Running {entry.name}", "torch")


def fetch(store: Store, entry: PublishedModel, progress: Progress | None = None) -> tuple[ModelFolder, tuple[str, ...]]:
    """Download and install a published model. The caller has shown its licence.

    An interrupted download stays in the store's folder, and the next call continues it; any other failure leaves
    nothing.

    Args:
        store: that gets the model.
        entry: from `manifest.known_models`.
        progress: called with bytes so far and in all.

    Returns:
        The model, and what was checked and recognised, a line each.

    Raises:
        UserError: when no address has the file, or it is a different file.
    """
    check_possible(store, entry)
    file = _place(store, entry)
    for number, url in enumerate(entry.urls, 1):
        try:
            download(url, file, size=entry.bytes, digests=entry.digests, progress=progress)
            break
        except UserError:
            if number == len(entry.urls):
                _tidy(file)
                raise
    try:
        proposal = examine(file, entry.id)
        model = store.add(proposal.spec, {name: lambda target: shutil.move(file, target) for name in proposal.sources})
    finally:
        file.unlink(missing_ok=True)
        _tidy(file)
    return model, proposal.findings


def forget(store: Store, entry: PublishedModel) -> bool:
    """Delete the files of an unfinished download of a model. Returns whether there were any."""
    file = _place(store, entry)
    there = discard_partial(file)
    _tidy(file)
    return there


def _place(store: Store, entry: PublishedModel) -> Path:
    return store.folder / ".downloads" / entry.id / entry.file


def _tidy(file: Path) -> None:
    """Remove the download's own folders where they are empty."""
    with contextlib.suppress(OSError):
        file.parent.rmdir()
        file.parent.parent.rmdir()
