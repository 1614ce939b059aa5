"""The models on this computer: those that ship with the library, and those that the user added."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import data_folder, resources, sha256_of
from SAMFineTuneLib.models.adapters.adapter_folder import CARD, AdapterFolder, is_base
from SAMFineTuneLib.models.download.manifest import known_models
from SAMFineTuneLib.models.folder_store import FolderStore, is_plain
from SAMFineTuneLib.models.spec import SPEC_FILE, ModelFolder, ModelSpec, read_model_folder, write_spec

DEFAULT_MODEL = "compact"

Source = Path | Callable[[Path], object]  # a file to copy, or a function that writes (or moves) one to a path


class Store(FolderStore[ModelFolder]):
    """Models in `folder`, by default that of SAMFINETUNE_MODELS, or `models` in the user's data folder.

    `spec` describes a model's folder, whose name is the model's id.
    """

    kind, one, called, variable = "models", "a model", "id", "SAMFINETUNE_MODELS"
    read = staticmethod(read_model_folder)

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(Path(folder or os.environ.get(self.variable) or data_folder() / "models"))
        self.bundled_folder = resources() / "models"

    def places(self) -> tuple[Path, ...]:
        """The bundled models come first."""
        return self.bundled_folder, self.folder

    def get(self, model_id: str = DEFAULT_MODEL) -> ModelFolder:
        """The model of that id. UserError that says how to get it when it is not on this computer."""
        for folder in self.places():
            if is_plain(model_id) and (folder / model_id / SPEC_FILE).is_file():
                return read_model_folder(folder / model_id)
        if model_id in known_models():
            entry = known_models()[model_id]
            how = f"get it with `samfinetune models download {model_id}`" if entry.downloadable else entry.how_to_get
            raise UserError(f"The model {model_id!r} ({entry.name}) is not on this computer; {how.rstrip('.')}.")
        here = ", ".join(model.spec.id for model in self.list())
        raise UserError(f"There is no model {model_id!r}; the models on this computer are {here or 'none'}, "
                        "and `samfinetune models list` shows what can be added.")

    def find(self, id_or_folder: str | Path) -> ModelFolder:
        """A model by its id in this store, or by its folder anywhere."""
        path = Path(id_or_folder).expanduser()
        if (path / SPEC_FILE).is_file():
            return read_model_folder(path)
        if (path / CARD).is_file():
            raise UserError(f"{id_or_folder} is an adapter, not a model: use it with "
                            f"“samfinetune segment --adapter {id_or_folder}”.")
        if path.is_file():
            raise UserError(f"{id_or_folder} is a file, not a model: add it with `samfinetune models import "
                            f"{id_or_folder}` and use the id that this prints.")
        if path.is_dir() and not is_plain(str(id_or_folder)):
            return read_model_folder(path)  # raises the error about its missing model.json
        return self.get(str(id_or_folder))

    def trained_on(self, adapter: AdapterFolder) -> ModelFolder:
        """The model on which an adapter was trained. UserError when it is not on this computer."""
        try:
            return self.get(adapter.card.base)
        except UserError as error:
            raise UserError(f"The adapter {adapter.name} needs the model it was trained on. {error}") from error

    def to_run(self, adapter: AdapterFolder) -> ModelFolder:
        """The model to open with an adapter: its base, or, when that is not on this computer, the adapter's own
        export."""
        brought = adapter.exported
        try:
            base = self.trained_on(adapter)
        except UserError:
            if brought is None:
                raise
            return brought
        return base if brought is None or is_base(adapter, base) else brought

    def overview(self) -> list[dict[str, Any]]:
        """Facts about each model here and each that can be added, in plain values.

        `where` is "bundled", "installed", "download" or "import"; `bytes` is None where it is not known.
        """
        rows = [
            {"id": model.spec.id, "name": model.spec.name, "bytes": model.bytes, "licence": model.spec.licence,
             "where": "bundled" if self.is_bundled(model) else "installed", "needs_torch": not model.has("encoder"),
             "promptable": "promptable" in model.spec.heads}
            for model in self.list()
        ]  # fmt: skip
        present = {row["id"] for row in rows}
        told = ("id", "name", "bytes", "licence", "licence_note", "source", "description", "needs", "how_to_get")
        rows += [
            {**{name: getattr(entry, name) for name in told}, "where": "download" if entry.downloadable else "import",
             "needs_torch": True, "promptable": True}
            for entry in known_models().values() if entry.id not in present
        ]  # fmt: skip
        return rows

    def is_bundled(self, model: ModelFolder) -> bool:
        """Whether a model ships with the library; it cannot be removed then."""
        return model.path.parent == self.bundled_folder

    def add(self, spec: ModelSpec, sources: Mapping[str, Source]) -> ModelFolder:
        """Install a model, completely or not at all.

        Args:
            spec: its description, to which the files' SHA-256 are added.
            sources: for each file, by its name in the model's folder, the file to copy or a function that writes it.

        Raises:
            UserError: when there is a model of that id, or the folder cannot be changed.
        """
        self.check_new(spec.id)
        with self._adding(spec.id) as building:
            for name, source in sources.items():
                if callable(source):
                    source(building / name)
                else:
                    shutil.copyfile(source, building / name)
            write_spec(replace(spec, sha256={name: sha256_of(building / name) for name in sources}), building)
        return read_model_folder(self.folder / spec.id)

    def remove(self, model_id: str) -> None:
        """Delete a model that the user added, even a damaged one. UserError for bundled and unknown models."""
        if (self.bundled_folder / model_id / SPEC_FILE).is_file():
            raise UserError(f"The model {model_id!r} ships with SAMFineTune and cannot be removed.")
        if not is_plain(model_id) or not (self.folder / model_id / SPEC_FILE).is_file():
            raise UserError(f"No model {model_id!r} is in {self.folder}; see `samfinetune models list`.")
        self._delete(model_id)
