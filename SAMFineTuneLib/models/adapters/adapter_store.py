"""The adapters on this computer, a folder each, whose name is the adapter's."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.adapters.adapter_folder import CARD, CARD_TEXT, ONNX, AdapterFolder, read_adapter_folder
from SAMFineTuneLib.models.folder_store import FolderStore, is_plain
from SAMFineTuneLib.models.spec import SPEC_FILE
from SAMFineTuneLib.models.store import Store


class AdapterStore(FolderStore[AdapterFolder]):
    """Adapters in `folder`, by default that of SAMFINETUNE_ADAPTERS, or `adapters` beside the folder of the models."""

    kind, one, called, variable = "adapters", "an adapter", "name", "SAMFINETUNE_ADAPTERS"
    read = staticmethod(read_adapter_folder)

    def __init__(self, folder: str | Path | None = None, models: Store | None = None) -> None:
        configured = folder or os.environ.get(self.variable)
        super().__init__(Path(configured or (models or Store()).folder.parent / "adapters"))

    def get(self, name: str) -> AdapterFolder:
        """The adapter of that name. UserError when there is none, or it is damaged."""
        if is_plain(name) and (self.folder / name).is_dir():
            return read_adapter_folder(self.folder / name)
        here = ", ".join(path.name for path in self.folders()) or "none"
        raise UserError(f"There is no adapter {name!r}; the adapters on this computer are: {here}.")

    def stamp(self, name: str) -> str:
        """A text that changes whenever the adapter of that name does; empty without one."""
        try:
            return hashlib.sha256((self.folder / name / CARD).read_bytes()).hexdigest() if is_plain(name) else ""
        except OSError:
            return ""

    def find(self, name_or_folder: str | Path) -> AdapterFolder:
        """An adapter by its name in this store, or by its folder anywhere. A name comes first."""
        name, path = str(name_or_folder), Path(name_or_folder).expanduser()
        if is_plain(name) and ((self.folder / name).is_dir() or not path.exists()):
            return self.get(name)
        return read_adapter_folder(path)

    def add(self, folder: str | Path, name: str | None = None) -> AdapterFolder:
        """Copy an adapter's folder into the store, under its own or another name.

        Raises:
            UserError: when it is damaged, there is an adapter of that name, or the folder cannot be changed.
        """
        adapter = read_adapter_folder(folder)
        name = name or adapter.name
        self.check_new(name)
        with self._adding(name) as building:
            for file in (*adapter.card.files, CARD_TEXT, CARD):
                if (adapter.path / file).is_file():
                    shutil.copyfile(adapter.path / file, building / file)
            if exported := adapter.exported:
                (building / ONNX).mkdir()
                for file in {*exported.spec.files.values(), *exported.spec.sha256, SPEC_FILE}:
                    shutil.copyfile(exported.path / file, building / ONNX / file)
        return read_adapter_folder(self.folder / name)

    def remove(self, name: str) -> None:
        """Delete an adapter, even a damaged one."""
        if not is_plain(name) or not (self.folder / name).is_dir():
            self.get(name)  # raises the error that names the adapters in the store
        self._delete(name)
