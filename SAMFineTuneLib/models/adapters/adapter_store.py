"""The adapters on this computer, a folder each. Its name is the adapter's; folders appear and vanish whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import sync
from SAMFineTuneLib.models.adapters.adapter_folder import CARD, CARD_TEXT, ONNX, AdapterFolder, read_adapter_folder
from SAMFineTuneLib.models.store import Store

_BUILDING = ".building-"  # begins the name of a folder that is not an adapter yet
_ABANDONED = 24 * 3600  # seconds after which such a folder belongs to no one


class AdapterStore:
    """Adapters in `folder`: given, or SAMFINETUNE_ADAPTERS, or `adapters` beside the folder of the models.

    Reading never creates the folder.
    """

    def __init__(self, folder: str | Path | None = None, models: Store | None = None) -> None:
        configured = folder or os.environ.get("SAMFINETUNE_ADAPTERS")
        self.folder = Path(configured or (models or Store()).folder.parent / "adapters").expanduser()

    def get(self, name: str) -> AdapterFolder:
        """The adapter of that name; UserError when it is not here, or not whole."""
        if _is_name(name) and (self.folder / name).is_dir():
            return read_adapter_folder(self.folder / name)
        here = ", ".join(path.name for path in self._folders()) or "none"
        raise UserError(f"There is no adapter {name!r}; the adapters on this computer are: {here}.")

    def stamp(self, name: str) -> str:
        """Changes when the adapter of that name does; empty when there is none."""
        try:
            return hashlib.sha256((self.folder / name / CARD).read_bytes()).hexdigest() if _is_name(name) else ""
        except OSError:
            return ""

    def find(self, name_or_folder: str | Path) -> AdapterFolder:
        """An adapter by its name here, or by its folder anywhere. A name comes first: what is here may be exported."""
        name, path = str(name_or_folder), Path(name_or_folder).expanduser()
        if _is_name(name) and ((self.folder / name).is_dir() or not path.exists()):
            return self.get(name)
        return read_adapter_folder(path)

    def list(self) -> list[AdapterFolder]:
        """All adapters that are whole, by name."""
        return [item for item in self._scan() if isinstance(item, AdapterFolder)]

    def problems(self) -> list[str]:
        """A sentence for each folder that cannot be read."""
        return [str(item) for item in self._scan() if isinstance(item, UserError)]

    def check_new(self, name: str) -> None:
        """UserError when an adapter cannot be added under that name."""
        if not _is_name(name):
            raise UserError(f"{name!r} cannot be an adapter's name: use letters, digits, '-', '_' and '.'.")
        if (self.folder / name).exists():
            raise UserError(f"There is an adapter {name!r} already, in {self.folder}; choose another name with --name, "
                            f"or remove that one first with `samfinetune adapters remove {name}`.")

    def add(self, folder: str | Path, name: str | None = None) -> AdapterFolder:
        """Copy an adapter's folder into the store, under its own or another name."""
        adapter = read_adapter_folder(folder)
        name = name or adapter.name
        self.check_new(name)
        with self._sentences():
            self._sweep()
            building = self.folder / f"{_BUILDING}{uuid.uuid4().hex[:8]}-{name}"
            building.mkdir(parents=True)
            try:
                for file in (*adapter.card.files, CARD_TEXT, CARD):
                    if (adapter.path / file).is_file():
                        shutil.copyfile(adapter.path / file, building / file)
                if adapter.exported:
                    shutil.copytree(adapter.path / ONNX, building / ONNX)
                for file in building.rglob("*"):
                    if file.is_file():
                        sync(file)
                os.rename(building, self.folder / name)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        return read_adapter_folder(self.folder / name)

    def remove(self, name: str) -> None:
        """Delete an adapter, whole or damaged."""
        if not _is_name(name) or not (self.folder / name).is_dir():
            self.get(name)  # raises, naming those that are here
        with self._sentences():
            doomed = self.folder / f"{_BUILDING}{uuid.uuid4().hex[:8]}-{name}"
            os.rename(self.folder / name, doomed)  # gone in one step; what a kill leaves is swept later
            shutil.rmtree(doomed)

    def _folders(self) -> list[Path]:
        found = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [path for path in found if path.is_dir() and not path.name.startswith(".")]

    def _scan(self) -> Iterator[AdapterFolder | UserError]:
        for path in self._folders():
            try:
                yield read_adapter_folder(path)
            except UserError as error:
                yield error

    def _sweep(self) -> None:
        for folder in self.folder.glob(f"{_BUILDING}*"):
            with suppress(FileNotFoundError):  # another process has just finished with it
                if time.time() - folder.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"The adapters folder {self.folder} cannot be changed ({error.strerror or error}): check "
                            "its permissions and free space, or set SAMFINETUNE_ADAPTERS to another one.") from error


def _is_name(name: str) -> bool:
    """Whether it is a visible folder's name rather than a path."""
    return bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name))
