"""Work on a cohort that must not block a window: a queue on the disk, and the process that does its pieces in turn.

| in the folder of a queue | what it holds |
|---|---|
| `NNNNNN.json` | a piece of work that is not done yet: what, and its values |
| `NNNNNN.npy` | the labels [k, j, i] that a piece brings along |

The rest belongs to the process (see `folder_process`), which drops pieces that it has not begun when it is asked to
stop.

A piece leaves the queue when it is done. So queued labels are kept even if window or process ends: the next window that
opens the cohort has the rest done (`take_up`). Nothing here waits, and NumPy alone is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.files import atomic_write, data_folder
from SAMFineTuneLib.service.folder_process import STOP, FolderProcess

GIVEN_UP = ".given-up"
"""File ending of a piece that could not be done, whose labels are kept."""
KEEPING = ("keep", "accept", "refuse", "reopen", "release")
"""Pieces that are done even after the window has gone."""
_MODULE = "SAMFineTuneLib.service.cohort_process"
BESIDE = "beside"
"""Name of the queue, shared by all windows, for work that runs beside training and proposing."""
_BACKGROUND = "background"  # the one of training and proposing


def pieces(folder: Path) -> list[Path]:
    """The pieces of a queue, oldest first."""
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.stem.isdigit())
    return []


def write_piece(path: Path, values: Mapping[str, Any]) -> None:
    """Write a piece, complete or not at all."""
    with atomic_write(path, durable=False) as temporary:
        temporary.write_text(json.dumps(values), encoding="utf-8")


def picture_path(cohort: Path, key: str) -> Path:
    """The file of a case's picture in lists."""
    return Path(cohort) / "pictures" / f"{key}.png"


class CohortWork(FolderProcess):
    """A queue of work on one cohort.

    Args:
        cohort: the cohort's folder, which need not exist yet.
        name: identifier of the window, or BESIDE; without one, the queue of training and proposing, which all windows
            share, too.
    """

    def __init__(self, cohort: Path, name: str = "") -> None:
        self.cohort = Path(cohort)
        super().__init__(_queues(self.cohort) / (name or _BACKGROUND), _MODULE, "The work on the cohort")
        self._number = max((int(path.stem) for path in pieces(self.folder)), default=0)

    def reserve(self, number: int | None = None) -> tuple[int, Path]:
        """A number, or the given one, for a piece that will be put later, and the path for its labels."""
        self._make_folder()
        self._number = self._number + 1 if number is None else number
        return self._number, self.folder / f"{self._number:06d}.npy"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self.folder) or error from error

    def put(self, what: str, number: int | None = None, **values: Any) -> int:
        """Append a piece of work to the queue. Returns its number, which its events carry."""
        number = self.reserve()[0] if number is None else number
        write_piece(self.folder / f"{number:06d}.json", {"what": what, "cohort": str(self.cohort), **values})
        return number

    def start(self, executable: str | None = None, environment: Mapping[str, str] | None = None,
              outlives: bool = False) -> None:  # fmt: skip
        """Start the process unless it runs; an earlier request to stop is cancelled."""
        with suppress(OSError):
            (self.folder / STOP).unlink(missing_ok=True)
        if self.is_running:
            return
        self._make_folder()
        super().start(executable, environment, outlives)

    @property
    def is_empty(self) -> bool:
        """Whether everything is done."""
        return not pieces(self.folder)

    def drop(self) -> None:
        """Remove all unfinished pieces from the queue."""
        for path in pieces(self.folder):
            path.unlink(missing_ok=True)

    def holds(self, number: int) -> bool:
        """Whether the piece of a number is not done."""
        return (self.folder / f"{number:06d}.json").exists()

    def poll_piece(self, number: int) -> list[dict[str, Any]]:
        """The events of one piece since the last call.

        Args:
            number: of the piece, as `put` returned it.

        Returns:
            The events. When the process ended without finishing the piece, the last one is `ended`, with the reason in
            `why`.
        """
        running = self.is_running  # asked first, so that the events include all that the process wrote before its end
        events = self.poll()
        found = [event for event in events if event.get("number") == number]
        if not events and not running:
            found.append({"event": "ended", "why": self.last_words() or "its process ended"})
        return found

    def forget(self) -> None:
        """Delete the queue with its unfinished pieces; does nothing while its process runs."""
        if not self.is_running:
            shutil.rmtree(self.folder, ignore_errors=True)


def take_up(cohort: Path, executable: str | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Start the queues of windows that ended early.

    Args:
        cohort: the cohort's folder.
        executable: Python, by default this one's.
        environment: variables, by default those of this process.

    Returns:
        How many there are.
    """
    found = 0
    for folder in sorted(_queues(Path(cohort)).glob("*/")):
        work = CohortWork(cohort, folder.name)
        if folder.name in (_BACKGROUND, BESIDE) or work.is_running:
            continue
        if work.is_empty:
            if not any(folder.glob(f"*{GIVEN_UP}")):
                work.forget()
            continue
        work.start(executable, environment)
        work.close()
        found += 1
    return found


def _queues(cohort: Path) -> Path:
    """The folder with the queues of a cohort, named without its path."""
    digest = hashlib.sha256(os.path.realpath(cohort).encode()).hexdigest()[:16]
    return data_folder() / "cohorts" / digest
