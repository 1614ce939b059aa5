"""The models on this computer: those that ship with the library, and those the user added.

A model is a folder (see `spec`); its name is the model's id. Folders appear and vanish whole: a new one is built
under a hidden name beside its place and renamed into it, so that a killed process leaves no half model.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import data_folder, resources, sha256_of, sync
from SAMFineTuneLib.models.adapters.adapter_folder import CARD, AdapterFolder, is_base
from SAMFineTuneLib.models.download.manifest import known_models
from SAMFineTuneLib.models.spec import SPEC_FILE, ModelFolder, ModelSpec, read_model_folder, write_spec

DEFAULT_MODEL = "compact"

Source = Path | Callable[[Path], object]  # a file to copy, or what writes (or moves) one to the path it is given

_BUILDING = ".building-"  # begins the name of a folder that is not a model yet
_ABANDONED = 24 * 3600  # seconds without a change after which such a folder belongs to no one


class Store:
    """Models in `folder`: given, or SAMFINETUNE_MODELS, or `models` in the user's data folder.

    Reading never creates the folder.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder or os.environ.get("SAMFINETUNE_MODELS") or data_folder() / "models").expanduser()
        self.bundled_folder = resources() / "models"

    def get(self, model_id: str = DEFAULT_MODEL) -> ModelFolder:
        """The model of that id; UserError that says how to get it when it is not here."""
        for folder in (self.bundled_folder, self.folder):
            if _is_plain(model_id) and (folder / model_id / SPEC_FILE).is_file():
                return read_model_folder(folder / model_id)
        if model_id in known_models():
            entry = known_models()[model_id]
            how = f"get it with `samfinetune models download {model_id}`" if entry.downloadable else entry.how_to_get
            raise UserError(f"The model {model_id!r} ({entry.name}) is not on this computer; {how.rstrip('.')}.")
        here = ", ".join(model.spec.id for model in self.list())
        raise UserError(f"There is no model {model_id!r}; the models on this computer are {here or 'none'}, "
                        "and `samfinetune models list` shows what can be added.")

    def find(self, id_or_folder: str | Path) -> ModelFolder:
        """A model by its id here, or by its folder anywhere."""
        path = Path(id_or_folder).expanduser()
        if (path / SPEC_FILE).is_file():
            return read_model_folder(path)
        if (path / CARD).is_file():
            raise UserError(f"{id_or_folder} is an adapter, not a model: use it with --adapter {id_or_folder}.")
        if path.is_file():
            raise UserError(f"{id_or_folder} is a file, not a model: add it with `samfinetune models import "
                            f"{id_or_folder}` and use the id that this prints.")
        if path.is_dir() and not _is_plain(str(id_or_folder)):
            return read_model_folder(path)  # raises: it lacks its model.json
        return self.get(str(id_or_folder))

    def trained_on(self, adapter: AdapterFolder) -> ModelFolder:
        """The model that an adapter was trained on; UserError when it is not here."""
        try:
            return self.get(adapter.card.base)
        except UserError as error:
            raise UserError(f"The adapter {adapter.name} needs the model it was trained on. {error}") from error

    def to_run(self, adapter: AdapterFolder) -> ModelFolder:
        """The model to open with an adapter: the one it was trained on, or, where that is not here, what the adapter
        brings with it."""
        brought = adapter.exported
        try:
            base = self.trained_on(adapter)
        except UserError:
            if brought is None:
                raise
            return brought
        return base if brought is None or is_base(adapter, base) else brought

    def list(self) -> list[ModelFolder]:
        """All models that can be read, the bundled ones first."""
        return [item for item in self._scan() if isinstance(item, ModelFolder)]

    def problems(self) -> list[str]:
        """A sentence for each model folder that cannot be read."""
        return [str(item) for item in self._scan() if isinstance(item, UserError)]

    def is_bundled(self, model: ModelFolder) -> bool:
        """Whether a model ships with the library, and so cannot be removed."""
        return model.path.parent == self.bundled_folder

    def check_new(self, model_id: str) -> None:
        """UserError when a model of that id is here already."""
        for folder in (self.bundled_folder, self.folder):
            if (folder / model_id).exists():
                raise UserError(f"There is a model {model_id!r} already, in {folder}; choose another id with --id, or "
                                f"remove that one first with `samfinetune models remove {model_id}`.")

    def add(self, spec: ModelSpec, sources: Mapping[str, Source]) -> ModelFolder:
        """Install a model whose files, by the names they get, are copied or written by what `sources` gives.

        Their SHA-256 goes into the model's description.
        """
        self.check_new(spec.id)
        with self._building(spec.id) as building:
            for name, source in sources.items():
                if callable(source):
                    source(building / name)
                else:
                    shutil.copyfile(source, building / name)
                sync(building / name)
            write_spec(replace(spec, sha256={name: sha256_of(building / name) for name in sources}), building)
        return read_model_folder(self.folder / spec.id)

    def remove(self, model_id: str) -> None:
        """Delete a model the user added, readable or not; UserError for bundled and unknown ones."""
        if (self.bundled_folder / model_id / SPEC_FILE).is_file():
            raise UserError(f"The model {model_id!r} ships with SAMFineTune and cannot be removed.")
        folder = self.folder / model_id
        if not _is_plain(model_id) or not (folder / SPEC_FILE).is_file():
            raise UserError(f"No model {model_id!r} is in {self.folder}; see `samfinetune models list`.")
        with self._sentences():
            doomed = self.folder / f"{_BUILDING}{uuid.uuid4().hex[:8]}-{model_id}"
            os.rename(folder, doomed)  # gone in one step; what a kill leaves is swept later
            shutil.rmtree(doomed)

    def _scan(self) -> Iterator[ModelFolder | UserError]:
        for place in (self.bundled_folder, self.folder):
            folders = sorted(place.iterdir()) if place.is_dir() else []
            for folder in folders:
                if folder.is_dir() and not folder.name.startswith("."):
                    try:
                        yield read_model_folder(folder)
                    except UserError as error:
                        yield error

    @contextmanager
    def _building(self, model_id: str) -> Iterator[Path]:
        """A hidden folder that becomes the model's when the block ends well, and vanishes when it does not."""
        building = self.folder / f"{_BUILDING}{uuid.uuid4().hex[:8]}-{model_id}"
        with self._sentences():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            building.mkdir()
            try:
                yield building
                os.rename(building, self.folder / model_id)
            finally:
                shutil.rmtree(building, ignore_errors=True)

    def _sweep(self) -> None:
        """Delete what killed processes left long ago."""
        for folder in self.folder.glob(f"{_BUILDING}*"):
            with suppress(FileNotFoundError):  # another process has just finished with it
                newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if time.time() - newest > _ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"The models folder {self.folder} cannot be changed ({error.strerror or error}): check its "
                            "permissions and free space, or set SAMFINETUNE_MODELS to another folder.") from error


def _is_plain(model_id: str) -> bool:
    """Whether an id is a visible folder's name rather than a path."""
    return bool(model_id) and Path(model_id).name == model_id and not model_id.startswith(".")
