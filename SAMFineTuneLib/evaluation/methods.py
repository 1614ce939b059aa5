"""The methods that an evaluation compares: models, models with an adapter, baselines; all answer prompts alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation import baselines
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder, read_adapter_folder
from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore
from SAMFineTuneLib.models.spec import ModelFolder, read_model_folder
from SAMFineTuneLib.models.store import DEFAULT_MODEL, Store
from SAMFineTuneLib.prompts import PlanePrompts

if TYPE_CHECKING:
    from SAMFineTuneLib.evaluation.baselines import BaselineAnswer
    from SAMFineTuneLib.inference.prediction import Prediction

_MEMORY = 256 << 20
_REVISION = 2  # version of the baselines: raise it when their answers change


@dataclass(frozen=True)
class ListedMethod:
    """A method as another process needs it: names and folders."""

    name: str
    model: Path | None = None
    """Folder of the model; None for a baseline."""
    adapter: Path | None = None
    digest: str = ""
    """Digest of weights, adapter and precision."""
    heads: tuple[str, ...] = ("promptable",)
    classes: tuple[str, ...] = ()
    """Classes that it finds without a prompt."""
    taught: tuple[str, ...] = field(default=(), repr=False)
    """Digests of the cases that an adapter learned from."""
    notices: tuple[str, ...] = ()

    @property
    def is_baseline(self) -> bool:
        """Whether it is a classical method without a model."""
        return self.model is None

    @property
    def kind(self) -> str:
        """`baseline`, `adapter` or `model`."""
        return "baseline" if self.is_baseline else "adapter" if self.adapter else "model"


class OpenMethod:
    """A method that is ready to answer."""

    def __init__(self, entry: ListedMethod, device: str = "auto") -> None:
        self.entry, self.name = entry, entry.name
        self.predictor: Predictor | None = None
        self.recipe: Mapping[str, Any] = {}
        """Of an adapter: how it was trained."""
        if entry.model is not None:
            adapter = read_adapter_folder(entry.adapter) if entry.adapter else None
            self.predictor = _open(read_model_folder(entry.model), adapter, device)
            self.recipe = adapter.card.recipe if adapter else {}

    def answer(
        self, picture: np.ndarray, prompts: PlanePrompts, previous: Prediction | BaselineAnswer | None = None
    ) -> Prediction | BaselineAnswer:
        """Answer prompts on a picture; `previous` is fed back as a mask prompt where the method takes one."""
        if self.predictor is None:
            return baselines.answer(self.name, picture, prompts)
        return self.predictor.predict(picture, prompts, previous=previous)


def enter(models: Sequence[str], adapters: Sequence[str], device: str = "auto") -> list[ListedMethod]:
    """Entries of models and adapters by id, name or folder; the bundled model when neither is named.

    Each is opened once, so that a method that cannot run is refused before the long work.
    """
    folders = [Store().find(name) for name in models or ([] if adapters else [DEFAULT_MODEL])]
    entries = [_enter(model, None, device) for model in folders]
    given = {model.spec.id: model for model in folders}
    for name in adapters:
        adapter = AdapterStore().find(name)
        entries.append(_enter(given.get(adapter.card.base) or Store().to_run(adapter), adapter, device))
    return _require_distinct(entries)


def enter_baselines(names: Sequence[str]) -> list[ListedMethod]:
    """Entries of baselines by name."""
    for name in names:
        if name not in baselines.METHODS:
            raise UserError(f"There is no baseline {name!r}; choose from {', '.join(baselines.METHODS)}, or none.")
    return [ListedMethod(name, digest=f"baseline {name} {_REVISION}") for name in names]


def _enter(model: ModelFolder, adapter: AdapterFolder | None, device: str) -> ListedMethod:
    engine = _open(model, adapter, device).engine
    return ListedMethod(
        f"{model.spec.id} + {adapter.name}" if adapter else model.spec.id,
        model.path.resolve(),
        adapter.path.resolve() if adapter else None,
        " ".join([engine.digest, *([engine.memory.digest] if engine.memory else [])]),
        tuple(engine.spec.heads),
        tuple(engine.spec.classes[1:]),
        adapter.card.cases if adapter else (),
        tuple(engine.notices),
    )


def _open(model: ModelFolder, adapter: AdapterFolder | None, device: str) -> Predictor:
    """Open with one thread: jobs run in parallel, and the order of sums, so every bit of results, stays the same."""
    return Predictor(open_engine(model, device, adapter=adapter, threads=1), EmbeddingCache(memory_bytes=_MEMORY))


def _require_distinct(entries: list[ListedMethod]) -> list[ListedMethod]:
    """Raise UserError when two entries are the same method, or have the same name."""
    for position, one in enumerate(entries):
        for other in entries[:position]:
            if one.digest == other.digest:
                raise UserError(f"{one.name} is named twice; name each model and adapter once.")
            if one.name == other.name:
                raise UserError(f"Two different methods have the name {one.name}; rename the folder of one.")
    return entries
