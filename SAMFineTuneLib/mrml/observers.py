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

    def add(self, thing, event, callback: Callable[[object], None]) -> None:
        """Call `callback(thing)` at an event."""
        self._added.append((thing, thing.AddObserver(event, self._guarded(lambda caller, _: callback(caller)))))

    def add_with_index(self, thing, event, callback: Callable[[object, int | None], object]) -> None:
        """Call `callback(thing, index)`; some of the events carry no index."""
        import vtk

        def call(caller, _, index=None):
            return callback(caller, index)

        guarded = self._guarded(call)
        guarded.CallDataType = vtk.VTK_INT
        self._added.append((thing, thing.AddObserver(event, guarded)))

    def add_with_node(self, thing, event, callback: Callable[[object], None]) -> None:
        """Call `callback(node)` with the node that an event of the scene is about."""
        import vtk

        def call(_, __, node=None):
            callback(node)

        guarded = self._guarded(call)
        guarded.CallDataType = vtk.VTK_OBJECT
        self._added.append((thing, thing.AddObserver(event, guarded)))

    def remove(self, thing=None) -> None:
        """Remove those of a thing, or all."""
        for other, tag in [pair for pair in self._added if thing is None or pair[0] is thing]:
            other.RemoveObserver(tag)
        self._added = [pair for pair in self._added if thing is not None and pair[0] is not thing]

    def _guarded(self, function):
        def guarded(*arguments):
            changed = None
            try:
                changed = function(*arguments)
            except Exception:
                self._log.exception("An observer failed")
            if changed is not False:
                self._called()

        return guarded
