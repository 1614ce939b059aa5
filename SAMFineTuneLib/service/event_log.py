"""The events of one session until its client has fetched them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from SAMFineTuneLib.service.protocol import Told
from SAMFineTuneLib.session import events

_MOST_LOOSE = 500  # events that are never replaced
_MOST_EVENTS = 64  # in one answer
_MOST_BYTES = 4 << 20
_LONGEST_WAIT = 1.0  # seconds for which an answer without events is kept back


class EventLog:
    """Events numbered from 1; written by the session's thread, read by the server's.

    Memory must not grow when a client has vanished: a newer event replaces an earlier one about the same thing, and of
    events that are never replaced, such as notices, only the last ones are kept. Masks are not copied.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._told: OrderedDict[int, Told] = OrderedDict()
        self._numbers: dict[Hashable, int] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._told)

    def add(self, event: events.Event, volume: int = 0, applied: int = 0) -> None:
        """Append an event; `volume` and `applied` are those of `Told`."""
        key = _key(event)
        with self._changed:
            self._last += 1
            if key is not None:
                self._told.pop(self._numbers.get(key), None)
                self._numbers[key] = self._last
            self._told[self._last] = Told(self._last, volume, applied, event)
            if key is None and len(self._told) > _MOST_LOOSE:
                loose = [number for number, told in self._told.items() if _key(told.event) is None]
                for number in loose[: len(loose) - _MOST_LOOSE]:
                    del self._told[number]
            self._changed.notify_all()

    def fetch(self, after: int, wait: float = 0.0, most_bytes: int = _MOST_BYTES) -> tuple[tuple[Told, ...], bool]:
        """Return the events after number `after`, and drop those up to it.

        Args:
            after: number of the last event that the client has.
            wait: seconds to wait for an event while there is none.
            most_bytes: about how large the events may be together.

        Returns:
            The events, and whether there are more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._last > after, min(wait, _LONGEST_WAIT))
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


def _key(event: events.Event) -> Hashable:
    """Equal for two events of which the later one replaces the earlier; None for an event that is never replaced."""
    match event:
        case events.MaskChanged():
            return events.MaskChanged, event.segment, event.plane.key
        case events.StateChanged() | events.ModelChanged():
            return type(event)
        case events.Busy():
            return events.Busy, event.job, event.what
        case events.Objects() | events.Finished():
            return type(event), event.job
    return None


def _bytes(event: events.Event) -> int:
    """Approximate bytes that an event adds to an answer."""
    match event:
        case events.MaskChanged():
            return len(event.packed.data) if event.packed is not None else 0
        case events.ObjectMasks():
            return sum(len(mask.data) for _, _, mask in event.masks)
        case events.Stored() | events.Snapshot() | events.Finished():
            return len(event.document or b"")
    return 0
