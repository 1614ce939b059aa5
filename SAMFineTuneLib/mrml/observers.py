"""Observers that are all removed again.

`slicer.util.VTKObservationMixin` neither removes the observers of one object nor keeps exceptions from VTK.
"""

from __future__ import annotations

import logging
from collections.abc import Callable


class Observers:
    """Adds observers to VTK objects and remembers them. A callback that raises is logged, not shown to VTK."""

    def __init__(self, log: logging.Logger, called: Callable[[], object] = lambda: None):
        """`called` is called after every callback but those that return False: nothing changed."""
        self._log, self._called = log, called
        self._added: list[tuple[object, int]] = []

    def __len__(self) -> int:
        return len(self._added)

    def add(self, thing, event, callback: Callable[..., object], data: str | None = None) -> None:
        """Call `callback(thing)` at an event. With `data` "VTK_INT" or "VTK_OBJECT" it also gets the number or object
        that the event is about, None with events that have none."""
        import vtk

        def observe(caller, _, about=None):
            changed = None
            try:
                changed = callback(caller) if data is None else callback(caller, about)
            except Exception:
                self._log.exception("An observer failed")
            if changed is not False:
                self._called()

        if data is not None:
            observe.CallDataType = getattr(vtk, data)
        self._added.append((thing, thing.AddObserver(event, observe)))

    def remove(self, thing=None) -> None:
        """Remove those of a thing, or all."""
        for other, tag in [pair for pair in self._added if thing is None or pair[0] is thing]:
            other.RemoveObserver(tag)
        self._added = [pair for pair in self._added if thing is not None and pair[0] is not thing]
