"""Answers a client's requests about models, adapters and the cache. They may take long, so each runs in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service.models_api import Cancelled, Library
from SAMFineTuneLib.service.uploads import Upload
from SAMFineTuneLib.session import events, intents


class LibraryRequests:
    """The requests of one client.

    Args:
        library: answers them.
        uploads: the files that the client has sent, by their numbers; an installed one is removed.
        tell: called with each event, from any thread.
        fail: called with an error, and the number and intent that met it, from any thread.
    """

    def __init__(
        self,
        library: Library,
        uploads: MutableMapping[int, Upload],
        tell: Callable[[events.Event], None],
        fail: Callable[[Exception, int, Any], None],
    ) -> None:
        self._library, self._uploads, self._tell, self._fail = library, uploads, tell, fail
        self._downloads: dict[int, threading.Event] = {}

    def ask(self, number: int, intent: intents.Ask) -> None:
        """Answer a question."""
        self._begin(number, intent, lambda: self._library.answer(intent.question, intent.model))

    def download(self, number: int, intent: intents.Download) -> None:
        """Download and install a published model."""
        if intent.job in self._downloads:
            raise UserError(f"Job {intent.job} exists already.")
        cancelled = self._downloads[intent.job] = threading.Event()

        def report(fraction: float, left: float | None, text: str) -> None:
            self._tell(events.Busy(intent.job, "download", fraction, left, text))

        def work() -> Any:
            try:
                return self._library.download(intent.model, report, cancelled.is_set)
            finally:
                del self._downloads[intent.job]
                self._tell(events.Finished(intent.job, "download", cancelled.is_set()))

        self._begin(number, intent, work)

    def install(self, number: int, intent: intents.Install) -> None:
        """Install a file that the client has sent."""
        upload = self._uploads.pop(intent.upload, None)
        if upload is None:
            raise UserError("The model's file has not arrived; import it again.")
        upload.require_whole()
        self._begin(
            number, intent, lambda: self._library.install(upload.data, intent.name, intent.model, intent.like)
        )

    def cancel(self, job: int) -> None:
        """Cancel the download with this job's number, if there is one."""
        if job in self._downloads:
            self._downloads[job].set()

    def close(self) -> None:
        """Cancel all downloads."""
        for cancelled in list(self._downloads.values()):
            cancelled.set()

    def _begin(self, number: int, intent: Any, work: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self._tell(events.Answered(intent.request, work()))
            except Cancelled:
                self._tell(events.Answered(intent.request, None))
            except Exception as error:
                self._fail(error, number, intent)

        threading.Thread(target=run, name="samfinetune-library", daemon=True).start()
