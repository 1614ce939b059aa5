"""When a volume's voxels, its place or its displayed window change, and when they have come to rest."""

from __future__ import annotations

from collections.abc import Callable

from SAMFineTuneLib.mrml.observers import Observers

_GEOMETRY_DELAY = 0.3  # seconds that voxels and transform must rest
_WINDOW_DELAY = 0.5  # seconds that the displayed window must rest


class VolumeWatch:
    """Observes one volume node and its display node."""

    def __init__(self, observers: Observers, clock: Callable[[], float]):
        self._observers, self._clock = observers, clock
        self._node = self._display = None
        self._changed: float | None = None
        self._window_changed: float | None = None

    def watch(self, node) -> None:
        """Observe this node, and the one before no more; None for none."""
        for seen in (self._node, self._display):
            if seen is not None:
                self._observers.remove(seen)
        self._node = node
        self._display = None
        if node is not None:
            for event in (node.TransformModifiedEvent, node.ImageDataModifiedEvent, "ModifiedEvent"):
                self._observers.add(node, event, self._on_change)
            self._watch_display(node.GetDisplayNode())

    def forget(self) -> None:
        """What has changed so far does not count."""
        self._changed = self._window_changed = None

    @property
    def pending(self) -> bool:
        """Whether something has changed that nobody has taken up."""
        return self._changed is not None or self._window_changed is not None

    def has_changed(self) -> bool:
        """Whether voxels or place have changed and come to rest; said once."""
        if self._changed is None or self._clock() - self._changed < _GEOMETRY_DELAY:
            return False
        self._changed = None
        return True

    def window_has_changed(self) -> bool:
        """Whether the displayed window has changed and come to rest; said once."""
        if self._window_changed is None or self._clock() - self._window_changed < _WINDOW_DELAY:
            return False
        self._window_changed = None
        return True

    def _watch_display(self, display) -> None:
        if display is self._display:
            return
        if self._display is not None:
            self._observers.remove(self._display)
        self._display = display
        if display is not None:
            self._observers.add(display, "ModifiedEvent", self._on_display)

    def _on_change(self, node) -> None:
        self._changed = self._clock()
        self._watch_display(node.GetDisplayNode())

    def _on_display(self, _) -> None:
        self._window_changed = self._clock()
