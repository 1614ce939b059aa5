"""Work on a cohort that must not stop a window: a queue on the disk, and the process that does one piece after another.

| in the folder of a queue | what it holds |
|---|---|
| `NNNNNN.json` | a piece of work that is not done yet: what, and its values |
| `NNNNNN.npy` | the labels [k, j, i] that a piece brings along |
| `events.jsonl`, `log.txt` | what has happened, what was printed |
| `lock`, `stop` | held by the process; asks it to stop |

A piece leaves the queue when it is done. So labels that were put into a queue are kept whatever ends, window or
process: the next window that opens the cohort has the rest done (`take_up`). Nothing here waits, and NumPy alone is
needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, data_folder
from SAMFineTuneLib.process_lock import ProcessLock
from SAMFineTuneLib.service.child_process import ChildProcess, child_environment, last_line

EVENTS, LOG, LOCK, STOP = "events.jsonl", "log.txt", "lock", "stop"
KEEPING = ("keep", "accept", "refuse", "reopen", "release")
"""Pieces that are still done after the window has gone."""
OUTLIVES = "SAMFINETUNE_COHORT_OUTLIVES"
"""Environment variable: all pieces are done after the window has gone."""
_MODULE = "SAMFineTuneLib.service.cohort_process"
_BACKGROUND = "background"  # the queue of what takes long, one for each cohort on this computer
_AT_ONCE = 1 << 16  # bytes of events that one call of `poll` reads


def pieces(folder: Path) -> list[Path]:
    """The pieces of a queue, first the one that was put first."""
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.stem.isdigit())
    return []


def picture_path(cohort: Path, key: str) -> Path:
    """Where the picture of a case lies that lists show."""
    return Path(cohort) / "pictures" / f"{key}.png"


# An open pipe tells a process that this program lives: it stays open when a panel is closed or made anew.
_STARTED: dict[Path, ChildProcess] = {}


def started() -> list[ChildProcess]:
    """Running processes of this program; `close` tells one that the program ends."""
    return [starter for starter in _STARTED.values() if starter.alive()]


class CohortWork:
    """A queue of work on one cohort.

    Args:
        cohort: the cohort's folder, which need not exist yet.
        name: a word of the window's own; without one, the queue of what takes long, which all windows share.
    """

    def __init__(self, cohort: Path, name: str = "") -> None:
        self.cohort = Path(cohort)
        self.folder = _queues(self.cohort) / (name or _BACKGROUND)
        self._lock = ProcessLock(self.folder / LOCK)
        self._number = max((int(path.stem) for path in pieces(self.folder)), default=0)
        self._position = 0
        self._rest = b""
        self._pid: int | None = None

    def reserve(self) -> tuple[int, Path]:
        """A number for a piece that is put later, and the path for its labels."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self.folder) or error from error
        self._number += 1
        return self._number, self.folder / f"{self._number:06d}.npy"

    def put(self, what: str, number: int | None = None, **values: Any) -> int:
        """Put a piece into the queue. -> its number, which its events have."""
        number = self.reserve()[0] if number is None else number
        with atomic_write(self.folder / f"{number:06d}.json", durable=False) as temporary:
            temporary.write_text(json.dumps({"what": what, "cohort": str(self.cohort), **values}), encoding="utf-8")
        return number

    def start(self, executable: str | None = None, environment: Mapping[str, str] | None = None,
              outlives: bool = False) -> None:  # fmt: skip
        """Start the process unless it runs.

        Args:
            executable: the Python that runs it; None is this one.
            environment: its environment variables; None is this process's.
            outlives: whether it does everything when this program has ended, and not only what keeps labels.

        Raises:
            UserError: when it cannot be started.
        """
        with suppress(OSError):
            (self.folder / STOP).unlink(missing_ok=True)
        if self.is_running:
            return
        command = [executable or sys.executable, "-m", _MODULE, str(self.folder)]
        starter = _STARTED.setdefault(self.folder, ChildProcess())
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            variables = {OUTLIVES: "1" if outlives else ""}
            starter.start(command, child_environment(environment, variables), self.folder / LOG)
        except OSError as error:
            raise disk_error(error) or UserError(
                f"The work on the cohort cannot be started with {command[0]} ({error.strerror or error})."
            ) from error

    @property
    def is_running(self) -> bool:
        """Whether a process works on the queue, started by this program or another one."""
        starter = _STARTED.get(self.folder)
        return (starter is not None and starter.alive()) or self._lock.owner is not None

    @property
    def is_empty(self) -> bool:
        """Whether everything is done."""
        return not pieces(self.folder)

    def poll(self) -> list[dict[str, Any]]:
        """The events since the last call, at most as many as a few milliseconds allow."""
        try:
            with open(self.folder / EVENTS, "rb") as file:
                if self._position > os.fstat(file.fileno()).st_size:  # it was begun anew
                    self._position, self._rest = 0, b""
                file.seek(self._position)
                text = file.read(_AT_ONCE)
        except OSError:
            return []
        self._position += len(text)
        *lines, self._rest = (self._rest + text).split(b"\n")
        events = []
        for line in lines:
            with suppress(ValueError):  # a killed process did not finish its line
                events.append(json.loads(line))
        for event in events:
            if event.get("event") == "begin":
                self._pid = event.get("pid")
        return events

    def stop(self) -> None:
        """Ask the process to stop what it does, and to drop what is not begun."""
        with suppress(OSError):
            (self.folder / STOP).touch()

    def kill(self) -> None:
        """End the process at once."""
        if self._pid is not None and self._lock.owner is not None:
            with suppress(OSError):
                os.kill(self._pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        if starter := _STARTED.get(self.folder):
            starter.kill()

    def drop(self) -> None:
        """Take everything out of the queue that is not done."""
        for path in pieces(self.folder):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Tell the process that this window needs no more of it: it does what keeps labels, and ends."""
        if starter := _STARTED.get(self.folder):
            starter.close()

    def forget(self) -> None:
        """Delete the queue with what is not done; nothing happens while its process runs."""
        if not self.is_running:
            shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self) -> str:
        """The last line that the process printed."""
        return last_line(self.folder / LOG)


def take_up(cohort: Path, executable: str | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Have done what windows left that ended early. -> the number of their queues."""
    found = 0
    for folder in sorted(_queues(Path(cohort)).glob("*/")):
        work = CohortWork(cohort, folder.name)
        if folder.name == _BACKGROUND or work.is_running:
            continue
        if work.is_empty:
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
