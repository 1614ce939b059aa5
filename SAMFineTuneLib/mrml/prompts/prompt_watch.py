"""What users do to the nodes that hold prompts, noted for the next round."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from SAMFineTuneLib.mrml.observers import Observers
from SAMFineTuneLib.mrml.prompts.markups_nodes import prompt_nodes
from SAMFineTuneLib.mrml.prompts.prompt_geometry import View
from SAMFineTuneLib.mrml.prompts.prompt_sync import PromptSync


class PromptWatch:
    """Observes every node of a scene that holds prompts, of whatever volume; reacts to none by itself."""

    def __init__(self, scene, observers: Observers, view_at: Callable[[Sequence[float]], View | None]):
        """`view_at` gives the view in which a point was clicked just now, None when nobody knows."""
        self.sync: PromptSync | None = None
        """Who is told; None while nothing is worked on."""
        self._scene, self._observers, self._view_at = scene, observers, view_at

    def watch_all(self) -> None:
        """Observe all nodes there are, as after loading a scene."""
        for node in prompt_nodes(self._scene):
            self.watch(node)

    def watch(self, node) -> None:
        """Observe a node; what is observed already is observed once."""
        observers = self._observers
        observers.remove(node)
        observers.add_with_index(node, node.PointPositionDefinedEvent, self._defined)
        observers.add_with_index(node, node.PointModifiedEvent, self._moved)
        observers.add(node, node.PointStartInteractionEvent, self._held)
        observers.add(node, node.PointEndInteractionEvent, self.let_go)
        for event in (
            node.PointPositionUndefinedEvent,
            node.PointRemovedEvent,
            node.TransformModifiedEvent,
            "ModifiedEvent",
        ):
            observers.add(node, event, self.changed)

    def changed(self, node) -> None:
        """A node says something else now."""
        if self.sync is not None:
            self.sync.dirty = True
            if node.GetID() in self.sync.held:
                self._held(node)

    def _moved(self, node, index: int | None) -> bool:
        """A point was moved; False when it is the preview under the mouse, which is not placed yet."""
        if index is not None and 0 <= index < node.GetNumberOfControlPoints():
            if node.GetNthControlPointPositionStatus(index) == node.PositionPreview:
                return False
        self.changed(node)
        return True

    def let_go(self, node) -> None:
        """Nobody drags at a node any more."""
        if self.sync is not None:
            self.sync.held.pop(node.GetID(), None)
            self.sync.dirty = True

    def _held(self, node) -> None:
        if self.sync is not None:
            self.sync.hold(node.GetID())

    def _defined(self, node, index: int | None) -> None:
        """Note in which view the user clicked: later the mouse is elsewhere."""
        self.changed(node)
        if self.sync is None or index is None or index >= node.GetNumberOfControlPoints():
            return
        view = self._view_at(node.GetNthControlPointPositionWorld(index))
        if view is not None:
            self.sync.placed_on[(node.GetID(), node.GetNthControlPointID(index))] = view
