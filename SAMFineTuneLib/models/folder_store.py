"""Common part of the stores of models and adapters: named folders in one folder, added and deleted in one step."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from SAMFineTuneLib.disk_errors import DiskError, disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import remove_folder, staged_folder

Item = TypeVar("Item")
_NOT_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.", re.IGNORECASE)
"""Names of devices, and names that lose their last character, so that they mean another folder."""


class FolderStore(Generic[Item]):
    """Items of one kind, each in a folder of its name. Reading never creates the store's folder.

    A subclass sets what it holds (`kind`, in the plural, and `one`, with its article), what identifies its items
    (`called`) and the environment variable of its folder, and reads items.
    """

    kind: ClassVar[str]
    one: ClassVar[str]
    called: ClassVar[str]
    variable: ClassVar[str]
    read: ClassVar[Callable[[Path], Item]]
    """The item in a folder. UserError when it is damaged or incomplete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()

    def places(self) -> tuple[Path, ...]:
        """Folders with items, in the order in which they are listed."""
        return (self.folder,)

    def list(self) -> list[Item]:
        """All items that can be read."""
        return [item for item in self._scan() if not isinstance(item, UserError)]

    def problems(self) -> list[str]:
        """A sentence for each folder that cannot be read."""
        return [str(item) for item in self._scan() if isinstance(item, UserError)]

    def check_new(self, name: str) -> None:
        """Raise UserError when there is an item of that name, or a name cannot be an item's on every computer."""
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
            raise UserError(f"{name!r} cannot be {self.one}'s {self.called}: use letters, digits, '-', '_' and '.'.")
        if _NOT_ON_WINDOWS.fullmatch(name):
            raise UserError(
                f"{name!r} cannot be {self.one}'s {self.called}, because Windows cannot have a folder of that name; "
                f"choose another one with --{self.called}."
            )
        for place in self.places():
            if (place / name).exists():
                raise UserError(
                    f"There is {self.one} {name!r} already, in {place}; choose another {self.called} with "
                    f"--{self.called}, or remove that one first with `samfinetune {self.kind} remove {name}`."
                )

    def folders(self) -> Iterator[Path]:
        """The folder of each item, whether it can be read or not."""
        for place in self.places():
            for path in sorted(place.iterdir()) if place.is_dir() else ():
                if path.is_dir() and not path.name.startswith("."):
                    yield path

    def _scan(self) -> Iterator[Item | UserError]:
        for folder in self.folders():
            try:
                yield self.read(folder)
            except UserError as error:
                yield error

    @contextmanager
    def _adding(self, name: str) -> Iterator[Path]:
        """A hidden folder that becomes the item's when the block succeeds, and is removed when it fails."""
        with self._changing(), staged_folder(self.folder / name) as building:
            yield building

    def _delete(self, name: str) -> None:
        with self._changing():
            remove_folder(self.folder / name)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, DiskError) as error:
            refused = str(disk_error(error, self.folder) or f"{self.folder} cannot be changed ({error}).")
            raise UserError(f"{refused.rstrip('.')} ({self.variable} sets the folder of the {self.kind}).") from error


def is_plain(name: str) -> bool:
    """Whether it is the name of a visible folder rather than a path."""
    if os.name == "nt" and _NOT_ON_WINDOWS.fullmatch(name.replace(" ", ".")):
        return False
    return bool(name) and name.isprintable() and Path(name).name == name and not name.startswith(".")
