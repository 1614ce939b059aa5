"""Shows everybody who looks at a cohort that an adapter is being trained or cases are being proposed, and the progress.
The working process holds a lock in the folder that it writes into, and writes a sentence beside it now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.process_lock import LOCK, ProcessLock

TRAINING, PROPOSALS = "training", "proposals"
"""Folders inside the cohort's: of an unfinished training, and of proposals."""
_WORK = {"train": TRAINING, "propose": PROPOSALS}
_SENTENCE = ".progress.txt"
_WRITE_EVERY = 1.0  # s


def running(cohort: Path) -> dict[str, str]:
    """The work that any process does for a cohort at present.

    Args:
        cohort: the cohort's folder.

    Returns:
        `train`, `propose`, both or neither → its progress and process, without a full stop.
    """
    found = {}
    for what, name in _WORK.items():
        if owner := ProcessLock(cohort / name / LOCK).owner:
            sentence = "Training" if what == "train" else "Proposing cases"
            with suppress(OSError, UnicodeError):  # it has only begun
                sentence = (cohort / name / _SENTENCE).read_text("utf-8")
            found[what] = f"{sentence} ({owner})"
    return found


@contextmanager
def announced(folder: Path) -> Iterator[Callable[[str], None]]:
    """Show others the progress of proposing while the block runs. Of two proposing processes, one is shown.

    Args:
        folder: of the proposals.

    Returns:
        A function to call with the progress, as a sentence without a full stop.

    Raises:
        DiskError: when nothing can be written there.
    """
    lock = ProcessLock(folder / LOCK)
    try:
        folder.mkdir(exist_ok=True)
        taken = lock.take()
    except OSError as error:
        raise disk_error(error, folder) or error from error
    if not taken:
        yield lambda sentence: None
        return
    try:
        yield sentence_writer(folder)
    finally:
        (folder / _SENTENCE).unlink(missing_ok=True)
        lock.release(remove=True)


def sentence_writer(folder: Path) -> Callable[[str], None]:
    """A function that writes the progress of the work in a folder, at most once a second."""
    after = 0.0

    def write(sentence: str) -> None:
        nonlocal after
        if time.monotonic() > after:
            after = time.monotonic() + _WRITE_EVERY
            with suppress(OSError), atomic_write(folder / _SENTENCE, durable=False) as temporary:
                temporary.write_text(sentence, "utf-8")

    return write
