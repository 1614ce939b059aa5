"""What a session tells its listeners: small immutable facts, in the order in which they became true."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from SAMFineTuneLib.images import SlicePlane
from SAMFineTuneLib.inference.progress import Progress


@dataclass(frozen=True, eq=False)
class MaskChanged:
    """The mask of a segment on a plane is another one, or gone; ask the session for it."""

    segment: int
    plane: SlicePlane


@dataclass(frozen=True)
class SegmentsChanged:
    """Segments were added, removed or renamed."""


@dataclass(frozen=True)
class PromptsChanged:
    """Prompts were added, moved or removed."""


@dataclass(frozen=True)
class Busy:
    """A job (`propagate`, `everything`) or the background (`embed`) made progress."""

    what: str
    progress: Progress
    job: int | None = None


@dataclass(frozen=True)
class Finished:
    """A job or the background is done, or was cancelled."""

    what: str
    cancelled: bool = False
    job: int | None = None


@dataclass(frozen=True)
class Notice:
    """A sentence the user should read; nothing failed."""

    text: str


@dataclass(frozen=True)
class Failed:
    """A sentence that says what could not be done; `job` is the number of the job that ended by it."""

    text: str
    job: int | None = None
    details: str = ""
    """For the log: what the runtime said."""


Event = MaskChanged | SegmentsChanged | PromptsChanged | Busy | Finished | Notice | Failed
Listener = Callable[[Event], None]


class Listeners:
    """Who is told. A listener that raises is logged and does not stop the others."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> Callable[[], None]:
        """Returns the function that removes the listener again."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def tell(self, event: Event) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                logging.getLogger(__name__).exception("A listener failed on %s", type(event).__name__)


class EventQueue:
    """Keeps events until they are fetched, for hosts that poll; use it as a listener."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()

    def __call__(self, event: Event) -> None:
        self._events.append(event)

    def fetch(self) -> list[Event]:
        """All events since the last call."""
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events
