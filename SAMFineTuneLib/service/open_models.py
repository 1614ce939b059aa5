"""The models that are open in this process, each once for all sessions."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.inference.engine import decodes_at_once

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.engine import Engine
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore
    from SAMFineTuneLib.models.store import Store

_MEMORY = 256 << 20  # bytes of embeddings that a session keeps in memory; the rest is on disk


class SharedEngine:
    """An engine that several sessions may call; one call at a time, so that memory does not depend on their number.

    Decoding takes little memory, so an engine that gains by it decodes for several at once.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()

    def __getattr__(self, name: str):
        """Delegates everything else to the engine."""
        return getattr(self._engine, name)

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        with self._lock:
            return self._engine.encode(image)

    def decode(self, *inputs) -> tuple[np.ndarray, np.ndarray]:
        with nullcontext() if decodes_at_once(self._engine) else self._lock:
            return self._engine.decode(*inputs)

    def decode_classes(self, embedding: dict[str, np.ndarray]) -> np.ndarray:
        with self._lock:
            return self._engine.decode_classes(embedding)


class Engines:
    """Opens models by id from a store, and closes those that no session uses any longer."""

    def __init__(self, store: Store | None = None) -> None:
        from SAMFineTuneLib.models.store import Store

        self.store = store or Store()
        self._lock = threading.Lock()
        self._open: weakref.WeakValueDictionary[tuple[str, ...], SharedEngine] = weakref.WeakValueDictionary()

    def predictor(self, model: str, adapter: str, device: str) -> Predictor:
        """A session's own predictor, with its own cache in memory.

        Args:
            model: id of the model.
            adapter: name of the adapter, "" without one.
            device: where it runs.

        Raises:
            UserError: when it cannot be opened here.
        """
        from SAMFineTuneLib.inference.embedding_cache import open_cache
        from SAMFineTuneLib.inference.predictor import Predictor

        cache = open_cache()
        cache.memory_bytes = _MEMORY
        return Predictor(self._engine(model, adapter, device), cache)

    def recipe(self, adapter: str) -> Mapping[str, Any]:
        """The recipe on an adapter's card; empty without an adapter."""
        return self._adapters.get(adapter).card.recipe if adapter else {}

    def _engine(self, model: str, adapter: str, device: str) -> SharedEngine:
        with self._lock:
            key = (model, adapter, self._adapters.stamp(adapter) if adapter else "", device)
            engine = self._open.get(key)
            if engine is None:
                engine = self._open[key] = SharedEngine(self._load(model, adapter, device))
            return engine

    def _load(self, model: str, adapter: str, device: str) -> Engine:
        from SAMFineTuneLib.inference.engine import open_engine

        folder = self._adapters.get(adapter) if adapter else None
        brought = folder is not None and model == folder.card.base
        return open_engine(self.store.to_run(folder) if brought else self.store.get(model), device, adapter=folder)

    @property
    def _adapters(self) -> AdapterStore:
        from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

        return AdapterStore(models=self.store)
