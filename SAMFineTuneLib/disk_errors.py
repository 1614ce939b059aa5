"""Errors of a disk as one sentence for the user, whichever library raises them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from SAMFineTuneLib.errors import UserError, is_out_of_memory

_FULL = "The disk is full, so nothing can be written to {place}; free some space, or use another disk."
_QUOTA = "Your share of the disk (quota) is used up, so nothing can be written to {place}; free some space there."
_TOO_LARGE = "{place} would be larger than a file may be on this disk or in this account; choose another place."
_READ_ONLY = "The disk with {place} is read-only; choose another place."
_FORBIDDEN = "You are not permitted to use {place}; choose another place, or ask for permission."
_LONG_NAME = "The name of {place} is too long for this disk; choose a shorter one."
_BAD_NAME = "{place} is not a valid name on this disk; choose another one."
_OPEN = "{place} is open in another program; close it there and try again."
_FILE_IN_PATH = "{place} cannot be made, because a part of its path is a file; choose another place."
_CIRCLE = "Links lead in a circle where {place} would be ({reason}); choose another place."
_NO_FOLDER = "The folder of {place} does not exist and cannot be made; choose another place."
_BROKEN = "The disk with {place} does not work properly ({reason}); check it and its connection."
_NO_TEMPORARY = "No folder for temporary files is writable; free some space on the system's disk."

_SENTENCES = {
    "ENOSPC": _FULL, "EDQUOT": _QUOTA, "EFBIG": _TOO_LARGE, "EROFS": _READ_ONLY, "EACCES": _FORBIDDEN,
    "EPERM": _FORBIDDEN, "ENAMETOOLONG": _LONG_NAME, "EILSEQ": _BAD_NAME, "ENOTDIR": _FILE_IN_PATH,
    "EEXIST": _FILE_IN_PATH, "ENOTEMPTY": "{place} was written by another program meanwhile; choose another name.",
    "EISDIR": "{place} is a folder, not a file; choose another name.",
    "EBUSY": _OPEN, "ETXTBSY": _OPEN, "EIO": _BROKEN, "ENXIO": _BROKEN, "ENODEV": _BROKEN, "ESTALE": _BROKEN,
    "ELOOP": _CIRCLE, "ENOMEDIUM": _BROKEN, "EUCLEAN": _BROKEN,
}  # fmt: skip
_BY_ERRNO = {getattr(errno, name): text for name, text in _SENTENCES.items() if hasattr(errno, name)}
# Windows's own error numbers, which say more than the errno that Python derives from them.
_BY_WINERROR = {
    5: "You are not permitted to use {place}, or another program has it open; close it, or choose another place.",
    19: _READ_ONLY, 21: _BROKEN, 32: _OPEN, 33: _OPEN, 39: _FULL, 53: _BROKEN, 59: _BROKEN, 64: _BROKEN,
    111: _LONG_NAME, 112: _FULL, 123: _BAD_NAME, 206: _LONG_NAME, 267: _FILE_IN_PATH, 1117: _BROKEN, 1295: _QUOTA,
    1392: _BROKEN,
}  # fmt: skip
STAGED_NAME = re.compile(r"\.[0-9a-f]{12}\.partial(-|$)")
"""Prefix of the hidden names under which `files` writes incomplete files."""
_NUMBER = re.compile(r"[\[(](Errno|WinError|os error) (\d+)[\])]")  # Python's text, and Rust's


class DiskError(UserError):
    """A disk refused to write. A file that was to be replaced is still there."""


def disk_error(error: BaseException, place: str | Path | None = None) -> DiskError | None:
    """Find an error of a disk in any exception.

    Libraries raise errors of their own with the system's error as the cause, or with its number in their text.

    Args:
        error: the exception.
        place: the file to be written; the sentence names it, or else the file that the error names.

    Returns:
        The sentence, or None when the error has nothing to do with a disk.
    """
    for found in _wrapped(error):
        if isinstance(found, UserError):  # a sentence already
            return found if isinstance(found, DiskError) else None
        text = _sentence(found)
        if place and isinstance(found, FileNotFoundError) and not Path(place).parent.exists():
            text = _NO_FOLDER  # code that writes makes the folder if possible
        if text:
            path = place or getattr(found, "filename", None)
            name = f"“{_final(Path(path))}”" if isinstance(path, (str, Path)) else "it"
            sentence = text.format(place=name, reason=getattr(found, "strerror", None) or found)
            return DiskError(sentence[0].upper() + sentence[1:])
    return None


def explained(error: BaseException, out_of_memory: str, missing_package: str) -> str:
    """The sentence for an error that a user can mend; empty for a defect.

    Args:
        error: the exception.
        out_of_memory: the sentence when memory ran out.
        missing_package: the sentence when a package is not installed, with {} for its name.
    """
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return out_of_memory
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in ("", __name__.partition(".")[0]):
        return missing_package.format(package)
    return str(disk_error(error) or "")


def _wrapped(error: BaseException | None):
    """The error and those that caused it. An error that merely came before counts only if a library failed again while
    it cleaned up after a failed write.
    """
    while error is not None:
        yield error
        error = error.__cause__ or (error.__context__ if isinstance(error, (OSError, RuntimeError)) else None)


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, ConnectionError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_WINERROR.get(getattr(error, "winerror", None)) or _BY_ERRNO.get(error.errno)
    text = str(error)
    if text.startswith("Symlink loop"):  # pathlib
        return _CIRCLE
    if "No usable temporary directory" in text:
        return _NO_TEMPORARY
    if found := _NUMBER.search(text):
        kind, number = found[1], int(found[2])
        windows = kind == "WinError" or (kind == "os error" and os.name == "nt")
        return (_BY_WINERROR if windows else _BY_ERRNO).get(number)
    return None


def _final(path: Path) -> Path:
    """The final path of a file that was to be written under one of the hidden names of `files`."""
    parts = list(path.parts)
    for at in reversed(range(len(parts) - 1)):
        if found := STAGED_NAME.match(parts[at]):
            del parts[at : at + (1 if found[1] else 2)]
    return Path(*parts[:-1], STAGED_NAME.sub("", parts[-1], 1) or parts[-1])
