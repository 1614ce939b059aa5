"""The newest document of the session at hand, in the scene, whenever somebody saves it.

Saving cannot wait for the worker, and code that saves need not announce it: the document is asked for whenever the
session has come to rest, and put into the scene at once.
"""

from __future__ import annotations

from collections.abc import Callable

from SAMFineTuneLib.mrml.storage import Record
from SAMFineTuneLib.session.events import Answered, Event, Failed

_SNAPSHOT_DELAY = 0.15  # seconds without a change before the session is asked for its document
_AFTER_FAILURE = 3.0  # seconds more, when it could not say
_RECORD_DELAY = 0.3  # seconds without a change before what there is is put into the scene


class RecordKeeper:
    """Keeps the record of one volume and segmentation current."""

    def __init__(self, record: Record, client, own_requests: set[int], clock: Callable[[], float]):
        """`own_requests` collects the numbers of requests that nobody else should hear of."""
        self.record = record
        self.outdated = False
        """Whether the record has changed since it was put into the scene."""
        self._client, self._own_requests, self._clock = client, own_requests, clock
        self._stale = False
        self._request: int | None = None
        self._last_change = clock()

    def changed(self) -> None:
        """The session is, or will be, another one."""
        self._stale = True
        self._last_change = self._clock()

    @property
    def current(self) -> bool:
        """Whether the record holds the session as it is."""
        return not self._stale and self._request is None

    @property
    def rested(self) -> bool:
        """Whether it is time to put into the scene what there is."""
        return self._clock() - self._last_change >= _RECORD_DELAY

    def ask(self, settled: bool, hurry: bool = False) -> None:
        """Ask for the document, if it is time and the session has come to rest."""
        due = hurry or self._clock() - self._last_change >= _SNAPSHOT_DELAY
        if self._stale and self._request is None and settled and due:
            self._stale = False
            self._request = self._client.snapshot()
            self._own_requests.add(self._request)

    def hear(self, event: Event) -> None:
        """Take the answer to the request."""
        if not isinstance(event, (Answered, Failed)) or event.request != self._request:
            return
        self._request = None
        if isinstance(event, Answered):
            self.record.document = event.value
            self.outdated = True
        else:
            self._stale = True
            self._last_change = self._clock() + _AFTER_FAILURE
