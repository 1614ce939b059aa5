"""A process that works in a folder for a window, and may outlive it. The folder is all that the two share.

| in the folder | what it holds |
|---|---|
| `events.jsonl` | what has happened, a JSON object a line |
| `log.txt` | what was printed |
| `lock` | held by the process for as long as it lives |
| `stop` | its existence asks the process to stop |

Nothing here waits, and NumPy alone is needed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.process_lock import ProcessLock
from SAMFineTuneLib.service.child_process import ChildProcess, child_environment, last_line

EVENTS, LOG, LOCK, STOP = "events.jsonl", "log.txt", "lock", "stop"
OUTLIVES = "SAMFINETUNE_OUTLIVES"
"""Environment variable: the process continues when the program that started it has ended."""
_AT_ONCE = 1 << 16  # bytes of events that one call of `poll` reads, which takes a millisecond or two

# An open pipe tells a process that this program lives. It must stay open when the panel that started the process is
# closed or reloaded, so the processes are held here.
_STARTED: dict[Path, ChildProcess] = {}


def started() -> list[ChildProcess]:
    """Running processes of this program; `close` tells one that the program ends."""
    return [child for child in _STARTED.values() if child.alive()]


class FolderProcess:
    """Starts, follows and stops the process that works in a folder.

    Args:
        folder: its folder.
        module: what runs in it, with the folder as the only argument.
        what: the process in words, at the beginning of a sentence.
    """

    def __init__(self, folder: Path, module: str, what: str) -> None:
        self.folder = folder
        self._module, self._what = module, what
        self._lock = ProcessLock(folder / LOCK)
        self._pid: int | None = None
        self._position = 0

    def start(self, executable: str | None = None, environment: Mapping[str, str] | None = None,
              outlives: bool = False) -> None:  # fmt: skip
        """Start the process.

        Args:
            executable: the Python that runs it; None is this one.
            environment: its environment variables; None is this process's.
            outlives: whether it continues with everything when this program has ended.

        Raises:
            UserError: when it cannot be started.
        """
        command = [executable or sys.executable, "-m", self._module, str(self.folder)]
        variables = {OUTLIVES: "1" if outlives else ""}
        try:
            (self.folder / STOP).unlink(missing_ok=True)
            child = _STARTED.setdefault(self.folder, ChildProcess())
            child.start(command, child_environment(environment, variables), self.folder / LOG)
        except OSError as error:
            raise disk_error(error) or UserError(
                f"{self._what} cannot be started with {command[0]} ({error.strerror or error})."
            ) from error

    @property
    def is_running(self) -> bool:
        """Whether a process works in the folder, started by this program or another one."""
        child = _STARTED.get(self.folder)
        return (child is not None and child.alive()) or self._lock.owner is not None

    def poll(self) -> list[dict[str, Any]]:
        """The events since the last call, at most as many as a few milliseconds allow."""
        events, self._position = self.events_after(self._position)
        self._pid = next((one["pid"] for one in reversed(events) if one.get("event") == "begin"), self._pid)
        return events

    def events_after(self, position: int) -> tuple[list[dict[str, Any]], int]:
        """The events from a place in their file on, as `poll` reads them, and where the next ones begin."""
        try:
            with open(self.folder / EVENTS, "rb") as file:
                if position > os.fstat(file.fileno()).st_size:  # a new process has started the file again
                    position = 0
                file.seek(position)
                text = file.read(_AT_ONCE)
        except OSError:
            return [], position
        text, events = text[: text.rfind(b"\n") + 1], []
        for line in text.split(b"\n"):
            with suppress(ValueError):  # a killed process did not finish its line
                event = json.loads(line)
                events += [event] if isinstance(event, dict) else []
        return events, position + len(text)

    def stop(self) -> None:
        """Ask the process to stop."""
        with suppress(OSError):
            (self.folder / STOP).touch()

    def kill(self) -> None:
        """End the process at once."""
        if self._pid is not None and self._lock.owner is not None:
            with suppress(OSError):
                os.kill(self._pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        if child := _STARTED.get(self.folder):
            child.kill()

    def close(self) -> None:
        """Let the process end: this window no longer needs it."""
        if child := _STARTED.get(self.folder):
            child.close()

    def last_words(self) -> str:
        """The last line that the process printed."""
        return last_line(self.folder / LOG)


# ---------------------------------------------------------------- in the process


class EventFile:
    """Writes events for those who follow the process; no more after one of `ends`, which any thread may write."""

    def __init__(self, folder: Path, ends: Collection[str] = ()) -> None:
        self._file = open(folder / EVENTS, "ab", buffering=0)  # noqa: SIM115 - as long as the process lives
        self._ends, self._ended = ends, False
        self._lock = threading.Lock()

    def __call__(self, event: str, **values: Any) -> bool:
        """Write an event; returns False after an event that ended the process's work."""
        with self._lock:
            if self._ended:
                return False
            self._ended = event in self._ends
            with suppress(OSError):  # the work goes on, or stops, on a full disk as well
                self._file.write((json.dumps({"event": event, **values}) + "\n").encode())
            return True


def run_in(folder: Path, work: Callable[[], int]) -> int:
    """Do the work of the process, unless another process works in the folder. Returns the exit code.

    Signals meant for the program that started the process, such as Ctrl+C in Slicer's terminal, are ignored.
    """
    lock = ProcessLock(folder / LOCK)
    if not lock.take():
        print(f"Another process works in this folder: {lock.owner}.", file=sys.stderr)
        return 2
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        return work()
    finally:
        lock.release()
