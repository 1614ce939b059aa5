"""Opens a predictor by the names of a model and an adapter."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.inference.embedding_cache import open_cache
from SAMFineTuneLib.inference.predictor import Predictor

if TYPE_CHECKING:
    from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder

_log = logging.getLogger(__name__)


def open_predictor(
    model: str | Path | None = None,
    adapter: str | Path | AdapterFolder | None = None,
    device: str = "auto",
    precision: str = "auto",
    *,
    disk_cache: bool = True,
    tell: Callable[[str], None] = _log.warning,
) -> Predictor:
    """Open a model, with or without an adapter, with the user's cache of embeddings.

    Args:
        model: id or folder; default: the adapter's base, else the bundled model.
        adapter: name or folder of an adapter.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", "directml" or "coreml".
        precision: "auto", "fp32" or "bf16".
        disk_cache: whether embeddings are cached on disk as well as in memory.
        tell: called with each notice for the user.

    Raises:
        UserError: when there is no such model or adapter, or it cannot run here.
    """
    from SAMFineTuneLib.inference.engine import open_engine
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore
    from SAMFineTuneLib.models.store import DEFAULT_MODEL, Store

    store = Store()
    if isinstance(adapter, str | Path):
        adapter = AdapterStore().find(adapter)
    if adapter is not None and model is None:
        folder = store.to_run(adapter)
    else:
        folder = store.find(DEFAULT_MODEL if model is None else model)
    engine = open_engine(folder, device, precision, adapter=adapter)
    for notice in engine.notices:
        tell(notice)
    return Predictor(engine, open_cache(disk=disk_cache))
