"""The events of one session until its client has fetched them, numbered from 1.

Memory must not grow when a client has vanished: a newer event replaces an earlier one about the same thing, and of
events that are never replaced, such as notices, only the last ones are kept. Masks are not copied.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from SAMFineTuneLib.service.protocol import Told
from SAMFineTuneLib.session.events import (
    Busy,
    Event,
    Finished,
    MaskChanged,
    ModelChanged,
    ObjectMasks,
    Objects,
    Snapshot,
    StateChanged,
    Stored,
)

_MOST_LOOSE = 500
_MOST_EVENTS = 64  # in one answer
_MOST_BYTES = 4 << 20


class EventLog:
    """Written by the session's thread, read by the server's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: OrderedDict[int, Told] = OrderedDict()
        self._numbers: dict[Hashable, int] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._told)

    def add(self, event: Event, volume: int = 0, applied: int = 0) -> None:
        """Append an event; see `Told`."""
        key = _key(event)
        with self._lock:
            self._last += 1
            if key is not None:
                self._told.pop(self._numbers.get(key), None)
                self._numbers[key] = self._last
            self._told[self._last] = Told(self._last, volume, applied, event)
            if key is None and len(self._told) > _MOST_LOOSE:
                loose = [number for number, told in self._told.items() if _key(told.event) is None]
                for number in loose[: len(loose) - _MOST_LOOSE]:
                    del self._told[number]

    def fetch(self, after: int, most_bytes: int = _MOST_BYTES) -> tuple[tuple[Told, ...], bool]:
        """What came after number `after` (what came before is forgotten), and whether there is more."""
        with self._lock:
            for number in [number for number in self._told if number <= after]:
                key = _key(self._told.pop(number).event)
                if self._numbers.get(key) == number:
                    del self._numbers[key]
            waiting = list(self._told.values())
        fetched, size = [], 0
        for told in waiting[:_MOST_EVENTS]:
            if fetched and size >= most_bytes:
                break
            fetched.append(told)
            size += _bytes(told.event)
        return tuple(fetched), len(fetched) < len(waiting)


def _key(event: Event) -> Hashable:
    """The same for two events of which only the later one counts; None for one that always counts."""
    match event:
        case MaskChanged():
            return MaskChanged, event.segment, event.plane.key
        case StateChanged() | ModelChanged():
            return type(event)
        case Busy():
            return Busy, event.job, event.what
        case Objects() | Finished():
            return type(event), event.job
    return None


def _bytes(event: Event) -> int:
    """About how much an event adds to an answer."""
    match event:
        case MaskChanged():
            return len(event.packed.data) if event.packed is not None else 0
        case ObjectMasks():
            return sum(len(mask.data) for _, _, mask in event.masks)
        case Stored() | Snapshot() | Finished():
            return len(event.document or b"")
    return 0
