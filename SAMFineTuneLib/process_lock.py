"""One file lock for the whole library: only one process writes into a folder, and others can see which one it is.

The operating system holds the lock for as long as the process lives, so that a kill or a crash releases it at once. The
file contains a process number, a time, and a digest that tells this computer from others without naming it. They serve
to say who holds the lock; on file systems that cannot lock (some network and cluster file systems) they decide.

Why not the package filelock: it cannot look at a lock without taking it, nor say who holds it, and Slicer's Python, in
which the panel follows trainings, does not have it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.typed_json import loaded
from SAMFineTuneLib.wording import duration

LOCK = ".lock"
"""Name of the file that a process locks in the folder that it owns."""
_TRIES, _BETWEEN = 8, 0.04  # times, seconds: checking a lock holds it for microseconds
_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK, errno.EWOULDBLOCK)
_SYNCHRONIZE, _ACCESS_DENIED = 0x00100000, 5  # Windows: an access right, and the error without it
_LOCKED_BYTE = 1 << 30  # far behind the text, since Windows lets nobody read a locked byte


@dataclass(frozen=True)
class LockOwner:
    """The process that holds a lock."""

    pid: int = 0
    """0 when it is not known."""
    since: float = 0.0
    """Seconds since 1970."""
    is_here: bool = True
    """Whether it runs on this computer."""

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        seconds = time.time() - self.since
        ago = "less than a minute" if seconds < 60 else duration(seconds)
        return f"process {self.pid}{'' if self.is_here else ' of another computer'}, for {ago}"

    @property
    def how_to_stop(self) -> str:
        """The second half of a sentence, which says how to end it."""
        if not self.pid or not self.is_here:
            return "stop it where it was started"
        by_hand = "in the Task Manager" if os.name == "nt" else f"by “kill {self.pid}”"
        return f"stop it with Ctrl-C where it was started, or {by_hand}"


class ProcessLock:
    """A file that one process at a time holds locked, for as long as it lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> bool:
        """Take the lock; False when another process holds it. Raises OSError when the file cannot be written."""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_BETWEEN)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if self._try(file):
                    self._file, file = file, None
                    return True
            finally:
                if file is not None:
                    os.close(file)
        return False

    def release(self, remove: bool = False) -> None:
        """Release the lock, and with `remove` delete the file."""
        if self._file is None:
            return
        with suppress(OSError):
            os.ftruncate(self._file, 0)
        if remove and os.name != "nt":  # while it is locked; Windows cannot delete an open file
            self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None
        if remove and os.name == "nt":
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    @property
    def owner(self) -> LockOwner | None:
        """The process that holds the lock now; None when none does."""
        if self._file is not None:
            return _described(self._path) or LockOwner(os.getpid(), time.time())
        try:
            file = os.open(self._path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        except OSError:
            return None
        try:
            free = _locked(file, self._path, shared=True)
        finally:
            os.close(file)
        return None if free else _described(self._path) or LockOwner()

    def _try(self, file: int) -> bool:
        if not _locked(file, self._path):
            return False
        try:  # its last owner may have deleted this file before it was locked
            there = os.stat(self._path)
        except OSError:
            return False
        if not os.path.samestat(there, os.fstat(file)):
            return False
        text = json.dumps({"pid": os.getpid(), "since": time.time(), "computer": _computer()})
        try:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, text.encode())
        except OSError:  # a full disk: leave no trace
            with suppress(OSError):
                self._path.unlink()
            raise
        return True


@contextmanager
def owning(folder: Path, what: str) -> Iterator[None]:
    """Own a folder while the block runs. A folder that did not exist is made, and removed if it is empty afterwards.

    Args:
        folder: what to own.
        what: the work, such as `The evaluation in …`, for the sentence that refuses a second process.

    Raises:
        UserError: when another process owns the folder.
        DiskError: when nothing can be written there.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = ProcessLock(folder / LOCK)
        taken = lock.take()
    except OSError as error:
        _remove_empty(made)
        if explained := disk_error(error, folder):
            raise explained from error
        raise
    if not taken:
        owner = lock.owner or LockOwner()
        raise UserError(f"{what} is running ({owner}); wait until it is done, or {owner.how_to_stop}.")
    try:
        yield
    finally:
        lock.release(remove=True)
        _remove_empty(made)


def this_process() -> str:
    """A word for this process, by which `has_ended` recognises it later."""
    return f"{_computer()} {os.getpid()}"


def has_ended(process: str) -> bool:
    """Whether the process of a word of `this_process` has ended; False for one of another computer."""
    computer, _, pid = process.partition(" ")
    return computer == _computer() and pid.isdecimal() and not _lives(int(pid))


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _locked(file: int, path: Path, shared: bool = False) -> bool:
    """Lock an open file until it is closed. Returns False when another process holds the lock."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in _HELD:
            return False
        owner = _described(path)  # the file system cannot lock
        return owner is None or (owner.is_here and not _lives(owner.pid))


def _described(path: Path) -> LockOwner | None:
    try:
        values = loaded(path.read_text(encoding="utf-8"))
        return LockOwner(int(values["pid"]), float(values["since"]), values["computer"] == _computer())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lives(pid: int) -> bool:
    if os.name == "nt":
        return _lives_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    return True


def _lives_on_windows(pid: int) -> bool:
    """Look for a process without `os.kill(pid, 0)`, which would send it Ctrl-C."""
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(_SYNCHRONIZE, False, pid)
    if not handle:
        return ctypes.get_last_error() == _ACCESS_DENIED  # it is another user's
    process = ctypes.c_void_p(handle)
    ended = kernel.WaitForSingleObject(process, 0) == 0
    kernel.CloseHandle(process)
    return not ended


def _computer() -> str:
    """A digest that tells computers apart without naming them."""
    return hashlib.sha256(f"SAMFineTune {platform.node()}".encode()).hexdigest()[:16]
