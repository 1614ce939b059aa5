"""A client's requests to a worker apart from its session: about models, adapters and the cache of embeddings.

Clients name models and adapters by id, and the worker looks them up in its own store; it never opens a path that a
client sends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.inference.embedding_cache import open_cache

if TYPE_CHECKING:
    from SAMFineTuneLib.models.store import Store

Report = Callable[[float, float | None, str], None]
"""Fraction done (0 to 1), seconds left, and a text for a progress bar."""


class Cancelled(Exception):
    """A download was cancelled."""


class Library:
    """Answers questions about a store in plain JSON values; UserError for what cannot be done.

    Args:
        store: the models.
        may_change: whether clients may add and remove models and clear the cache.
    """

    def __init__(self, store: Store, may_change: bool = True) -> None:
        self._store = store
        self._may_change = may_change
        self._busy = threading.Lock()

    def answer(self, question: str, model: str = "") -> Any:
        """Answer a question.

        Args:
            question: "models", "adapters", "cache_info", "clear_cache" or "remove_model".
            model: id of the model to remove.

        Returns:
            For models what `Store.overview` returns, for adapters a list of dicts; for the cache `entries`, `bytes` and
            `limit`, or the bytes `freed`.
        """
        match question:
            case "models":
                return self._store.overview()
            case "adapters":
                return self._adapters()
            case "cache_info":
                info = open_cache().info()
                return {"entries": info.entries, "bytes": info.size, "limit": info.limit}
            case "clear_cache":
                self._require_change()
                return {"freed": open_cache().clear()}
            case "remove_model":
                self._require_change()
                self._store.remove(model)
                return {}
        raise UserError("The server does not know this question; update it.")

    def _adapters(self) -> list[dict]:
        from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

        return [
            {
                "id": adapter.name,
                "model": adapter.card.base,
                "labels": list(adapter.card.labels),
                "classes": list(adapter.card.method.classes),
                "orientation": adapter.card.recipe.get("orientation"),
                "window": adapter.card.recipe.get("window"),
                "bytes": adapter.bytes,
                "promptable": "promptable" in adapter.card.method.heads,
                "needs_torch": adapter.exported is None,
            }
            for adapter in AdapterStore(models=self._store).list()
        ]

    def download(self, model: str, report: Report, cancelled: Callable[[], bool]) -> dict:
        """Download and install a published model, whose terms the user has agreed to.

        Args:
            model: its id.
            report: called with the progress.
            cancelled: whether to stop, which raises Cancelled.
        """
        from SAMFineTuneLib.models.download.manifest import find_entry
        from SAMFineTuneLib.models.download.published_models import check_possible, fetch

        self._require_change()
        entry = find_entry(model)
        check_possible(self._store, entry)
        begun, first = time.monotonic(), [None]

        def progress(received: int, total: int | None) -> None:
            if cancelled():
                raise Cancelled
            first[0] = received if first[0] is None else first[0]
            spent, fresh = time.monotonic() - begun, received - first[0]
            left = spent / fresh * (total - received) if total and fresh and spent > 1 else None
            report(received / total if total else 0.0, left, f"Downloading {entry.name}")

        if not self._busy.acquire(blocking=False):
            raise UserError("Another model is being downloaded; wait for it or cancel it.")
        try:
            folder, findings = fetch(self._store, entry, progress)
        finally:
            self._busy.release()
        return {"model": folder.spec.id, "findings": list(findings)}

    def install(self, data, name: str, model: str | None, like: str | None) -> dict:
        """Install a checkpoint from its bytes.

        Args:
            data: content of the file.
            name: of the file; its ending is that of the format.
            model: id to install it under; None for one that follows from the name.
            like: id of the model whose architecture it has; None to recognise it.
        """
        import tempfile
        from pathlib import Path

        from SAMFineTuneLib.models.formats.import_model import examine

        self._require_change()
        ending = Path(name).suffix.lower()
        if ending not in (".pth", ".pt", ".safetensors"):
            raise UserError("A model file ends in .pth, .pt or .safetensors; choose such a file.")
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(name).stem)[:80].strip(".") or "model"
        store = self._store
        store.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store.folder, prefix=".upload-") as folder:
            file = Path(folder) / f"{stem}{ending}"
            file.write_bytes(data)
            try:
                proposal = examine(file, model, like)
            except UserError as error:  # which names the copy, and nobody knows that
                raise UserError(str(error).replace(str(file), file.name)) from error
            installed = store.add(proposal.spec, proposal.sources)
        return {"model": installed.spec.id, "findings": list(proposal.findings), "terms": proposal.terms}

    def _require_change(self) -> None:
        if not self._may_change:
            raise UserError("Only its administrator may change this server's models and cache; ask for the change.")
