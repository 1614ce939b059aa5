"""Where files lie, and writing them so that neither a killed process nor a full disk leaves half a file."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Any

from SAMFineTuneLib.disk_errors import STAGED_NAME, DiskError, disk_error
from SAMFineTuneLib.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
_PROBE = 1 << 20  # bytes that fit on any disk that is not full
_HELD = (5, 32, 33)  # Windows: another program, perhaps a virus scanner for a moment, has the file open
_PATIENCE = 1.5  # s
_ABANDONED = 24 * 3600  # seconds without a change after which a killed process must have left it
_MOST_LOOKED_AT = 10_000  # names in a folder among which abandoned ones are looked for
_looked_into: set[Path] = set()  # by this process
_replaces = ContextVar("replaces", default=True)  # whether writing may replace existing files


@contextmanager
def atomic_write(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Write a file that appears complete or not at all.

    Leftovers of killed processes in its folder, older than a day, are deleted when this process first writes there.

    Args:
        path: the file; an existing one stays until the new one is complete.
        durable: wait until the disk has stored the file. Not needed for files that can be made again.

    Yields:
        A temporary path to write to. It has the ending of `path` (`.seg.nrrd`, `.nii.gz`) in lower case, because
        writers choose the format by it.

    Raises:
        DiskError: when the disk refuses, even if a library wraps that in an error of its own.
    """
    path = Path(path)
    if os.path.islink(path):  # its target is replaced, not the link
        path = Path(os.path.realpath(path))
    temporary = beside(path)
    try:
        with _disk_errors(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in _looked_into:
                _looked_into.add(path.parent)
                remove_abandoned(path.parent)
            yield temporary
            if durable:
                _sync(temporary)
            _place(temporary, path)
            if durable:
                _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def only_new(yes: bool = True) -> Iterator[None]:
    """Require files written inside the block to be new, even if another process writes one of that name at the same
    time: `atomic_write` and `staged_folder` then raise UserError.
    """
    token = _replaces.set(not yes)
    try:
        yield
    finally:
        _replaces.reset(token)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file that appears complete or not at all, in UTF-8; names of files keep bytes that are not."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


@contextmanager
def staged_folder(path: str | Path, replaced: Iterable[Path] = ()) -> Iterator[Path]:
    """Write a folder that appears complete or not at all.

    A folder that exists at `path` keeps its other files, and gets the new ones in the order in which they were written.
    Leftovers of killed processes beside it, older than a day, are deleted.

    Args:
        path: the folder.
        replaced: files in an existing folder that are deleted once the new ones are there.

    Yields:
        An empty folder of the same name, elsewhere on the same disk, to write into.

    Raises:
        DiskError: as in `atomic_write`.
    """
    path = Path(path)
    there = path.is_dir()  # an existing folder stays, since it may be the mount point of a disk
    place = path / f".{uuid.uuid4().hex[:12]}.partial" if there else beside(path)
    building = place / (path.resolve().name or "new")
    try:
        with _disk_errors(path, place):
            remove_abandoned(place.parent)
            building.mkdir(parents=True)
            with only_new(False):  # hidden from others until it is complete
                yield building
            made = [file for file in building.rglob("*") if file.is_file()]
            for file in made:
                _sync(file)
            if there:
                with nullcontext() if _replaces.get() else _alone_in(path):
                    _move_in(made, building, path, replaced)
            else:
                _replace(building, path)
            _sync_folder(path if there else path.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep others who need an empty folder from writing into this one; UserError if they write or have written."""
    claim, refused = folder / ".000000000000.partial", f"“{folder}” was written by another program meanwhile; choose "
    try:
        claim.mkdir()
    except FileExistsError:
        raise UserError(f"{refused}another folder.") from None
    try:
        if not all(STAGED_NAME.match(name) for name in os.listdir(folder)):
            raise UserError(f"{refused}another folder.")
        yield
    finally:
        claim.rmdir()


def _move_in(made: Iterable[Path], building: Path, folder: Path, replaced: Iterable[Path]) -> None:
    """Move new files from `building` into a folder, the oldest first; then delete the `replaced` ones."""
    targets = []
    for file in sorted(made, key=lambda file: file.stat().st_mtime_ns):
        targets.append(folder / file.relative_to(building))
        targets[-1].parent.mkdir(parents=True, exist_ok=True)
        _place(file, targets[-1])
    for old in set(replaced) - set(targets):
        old.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a folder in one step, so that no program sees half of it. Raises OSError when it cannot be deleted."""
    doomed = beside(path)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def remove_abandoned(folder: Path, after: float = _ABANDONED) -> None:
    """Delete leftovers of killed processes in a folder: hidden names of this module, unchanged for `after` seconds."""
    with suppress(OSError):  # files that cannot be listed or deleted do not prevent writing
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MOST_LOOKED_AT) if STAGED_NAME.match(entry.name)]
        for left in (folder / name for name in names):
            with suppress(OSError):  # another process has just finished with it
                newest = max(path.lstat().st_mtime for path in (left, *left.rglob("*")))
                if time.time() - newest > after:
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def require_not_read(target: Path, read: Iterable[Path]) -> None:
    """Raise UserError when a file to be written is one of those that were read."""
    if target.exists() and any(file.exists() and target.samefile(file) for file in read):
        raise UserError(f"“{target}” is a file that was read, and those are never overwritten; choose another name.")


def require_log(path: str | Path) -> None:
    """UserError for a file that is neither called a log nor one of this program: lines would be appended to it."""
    if Path(path).is_file() and Path(path).suffix != ".log":
        with open(path, "rb") as file:
            if (begin := file.read(14)) and not re.match(rb"\d{4}-\d\d-\d\d \d\d:", begin):
                raise UserError(f"“{path}” is there and is not a log of SAMFineTune; choose another name.")


def require_apart(target: Path, slices: Iterable[Path]) -> None:
    """As `require_not_read`, and UserError if a file to be written would lie among the files of a series that was read:
    the next reader of that folder would take a label map for an image.
    """
    slices = list(slices)
    require_not_read(target, slices)
    place = target.parent.resolve()
    if sum(file.parent.resolve() == place for file in slices[:2]) > 1:
        raise UserError(f"“{target}” would lie among the slices that were read; choose another folder.")


def require_writable(folder: str | Path) -> None:
    """Check before long work that its results can be written.

    Args:
        folder: their folder; it need not exist yet.

    Raises:
        DiskError: when files cannot be created there.
    """
    folder = Path(folder)
    there = folder
    while not os.path.lexists(there) and there != there.parent:  # links that lead nowhere are there
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1))
    except OSError as error:
        raise disk_error(error, folder) or DiskError(
            f"Nothing can be written into “{folder}” ({error.strerror or error}); choose another place."
        ) from error


def beside(path: Path) -> Path:
    """A unique hidden name beside `path`, short enough where the name of `path` just fits."""
    return path.with_name(f".{uuid.uuid4().hex[:12]}.partial-{path.name[-40:].lower()}")


def _sync(path: Path) -> None:
    """Wait until the disk has stored a file's content. Raises OSError when it cannot."""
    with open(path, "rb+" if os.name == "nt" else "rb") as file:  # a linked file may be read-only
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the disk has stored the folder's new entry, where the system can; the content is stored already."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def move_over(source: Path, target: Path) -> None:
    """Move a complete file to another name on the same disk, in one step, replacing an existing file."""
    _replace(source, target)
    _sync_folder(target.parent)


def _place(source: Path, target: Path) -> None:
    """Give a complete file its final name, within `only_new` if nothing has it."""
    if _replaces.get():
        return _replace(source, target)
    try:
        try:
            os.link(source, target)  # unlike renaming, it never replaces
        except FileExistsError:
            raise
        except OSError:  # a disk without links
            with open(target, "xb"):
                pass
            _replace(source, target)
    except FileExistsError:
        raise UserError(f"“{target}” was written by another program meanwhile; choose another name.") from None


def _replace(source: Path, target: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return os.replace(source, target)
        except OSError as error:
            if getattr(error, "winerror", None) not in _HELD or time.monotonic() > end:
                raise
            time.sleep(0.05)


@contextmanager
def _disk_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Raise errors of a disk as a DiskError about `path`, whichever library reports them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        explained = disk_error(error, path)
        if explained is None and isinstance(error, (OSError, RuntimeError)):
            explained = _refusal(path, temporary)
        if explained:
            raise explained from error
        raise


def _refusal(path: Path, temporary: Path) -> DiskError | None:
    """The disk's error when more is written, tried before the incomplete file is removed: libraries may not repeat it.
    """
    try:
        with tempfile.TemporaryFile(dir=temporary.parent) as file:
            file.seek(temporary.stat().st_size if temporary.is_file() else 0)
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as refusal:
        return disk_error(refusal, path)
    return None


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file as hexadecimal text."""
    return hex_digest(path, hashlib.sha256())


def hex_digest(path: str | Path, digest: Any) -> str:
    """The digest of a file by a new hash object of hashlib, or one like it, as hexadecimal text."""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def resources() -> Path:
    """The folder with models and data that ship with the package: inside it when installed, beside it in a checkout."""
    installed = _PACKAGE / "Resources"
    return installed if installed.is_dir() else _PACKAGE.parent / "Resources"


def data_folder() -> Path:
    """The user's folder for models, adapters, trainings and caches; `SAMFINETUNE_HOME` overrides it.

    The same folders as platformdirs chooses. That package does not replace these lines because the panel needs the
    folder in Slicer's Python, before anything is installed.
    """
    if home := os.environ.get("SAMFINETUNE_HOME"):
        return Path(home).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "samfinetune"
