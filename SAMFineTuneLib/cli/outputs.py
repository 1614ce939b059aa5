"""Checks before a command writes: it replaces results only with --overwrite, and needs a writable place."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING

from SAMFineTuneLib.disk_errors import DiskError, disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import require_writable

if TYPE_CHECKING:
    from SAMFineTuneLib.cases.cases import Case


def add_overwrite(parser) -> None:
    """--overwrite."""
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there already")


def require_new(targets: Iterable[str | Path], args: argparse.Namespace, others: str = "choose another name") -> None:
    """Check files that a command is about to write: before the work, and again before its result is written.

    Args:
        targets: the files.
        args: the command's options; `overwrite` is used.
        others: what the user can do instead of `--overwrite`, as part of the message.

    Raises:
        UserError: when one exists already, or is a folder; the message names the first.
        DiskError: when one could not be written; or an OSError that `disk_errors` explains.
    """
    targets = [Path(target).expanduser() for target in targets]
    for target in targets:
        with suppress(FileNotFoundError):
            if S_ISDIR(target.stat().st_mode):  # links in a circle and the like are refused by this, too
                raise UserError(f"“{target}” is a folder, not a file; choose another name.")
    there = [target for target in targets if os.path.lexists(target)]
    if there and not args.overwrite:
        more = f", and so do {len(there) - 1} more of the files to write" if len(there) > 1 else ""
        raise UserError(f"“{there[0]}” exists already{more}: {others}, or add --overwrite to replace it.")
    for folder in {(target.resolve() if target.is_symlink() else target).parent for target in targets}:
        require_writable(folder)


def require_new_folder(folder: str | Path) -> Path:
    """The folder, if it is empty or does not exist, and can be written; UserError or DiskError otherwise."""
    folder = Path(folder).expanduser()
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; -o needs a new or an empty folder.")
    require_writable(folder)
    return folder


def require_beside(output: str | Path, given: str | Path, cases: Iterable[Case]) -> None:
    """Raise UserError for a folder of results among the images or labels of a folder of cases, where every folder
    counts as a DICOM series.
    """
    place = Path(output).expanduser().resolve()
    used = {file.parent.resolve() for case in cases for file in (case.image, case.label)}
    if Path(given).expanduser().is_dir() and used.intersection((place, *place.parents)):
        raise UserError(f"“{output}” lies among the images or labels of “{given}”; choose a folder elsewhere.")


@contextmanager
def resumable(begun: Path) -> Iterator[None]:
    """Add to a disk's error how to resume, if `begun`, a file of the unfinished work, exists."""
    try:
        yield
    except Exception as error:
        refused = disk_error(error)
        if refused is None or not begun.exists():
            raise
        raise DiskError(f"{str(refused).rstrip('.')}; then continue with the same command and --resume.") from error
