"""The events of one session until its client has fetched them, numbered from 1.

A client that vanished must not make memory grow: an event under the key of an earlier one takes its place at the end,
and of those without a key only the last ones are kept. Masks are references to what the session holds anyway.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray | bytes]

_MOST_LOOSE = 500


@dataclass(frozen=True, eq=False)
class Entry:
    """An event as JSON, and its arrays, which are made when it is fetched."""

    values: dict[str, Any]
    arrays: Callable[[], Arrays] | None = None
    key: Hashable = None


class EventLog:
    """Written by the session's thread, read by the server's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._numbers: dict[Hashable, int] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, values: dict[str, Any], arrays: Callable[[], Arrays] | None = None, key: Hashable = None) -> None:
        """Append an event; an earlier one with this key that was not fetched yet is dropped."""
        with self._lock:
            self._last += 1
            if key is not None:
                self._entries.pop(self._numbers.get(key), None)
                self._numbers[key] = self._last
            self._entries[self._last] = Entry(values, arrays, key)
            if key is None and len(self._entries) > _MOST_LOOSE:
                loose = [number for number, entry in self._entries.items() if entry.key is None]
                for number in loose[: len(loose) - _MOST_LOOSE]:
                    del self._entries[number]

    def fetch(self, after: int, most: int = 64, most_bytes: int = 4 << 20) -> tuple[list[dict], dict[str, Any], bool]:
        """What came after number `after` (what came before is forgotten), its arrays, and whether there is more.

        Each event says its number as "number"; its arrays are named "<number>/<name>".
        """
        with self._lock:
            for number in [number for number in self._entries if number <= after]:
                entry = self._entries.pop(number)
                if self._numbers.get(entry.key) == number:
                    del self._numbers[entry.key]
            waiting = list(self._entries.items())
        told, arrays, size = [], {}, 0
        for number, entry in waiting[:most]:
            if told and size >= most_bytes:
                break
            told.append({"number": number, **entry.values})
            for name, array in (entry.arrays() if entry.arrays is not None else {}).items():
                arrays[f"{number}/{name}"] = array
                size += len(array) if isinstance(array, bytes) else array.nbytes
        return told, arrays, len(told) < len(waiting)
