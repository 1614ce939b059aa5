"""Observes a scene: notes changes for the next turn, and reports at once those that cannot wait."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from SAMFineTuneLib.mrml import storage
from SAMFineTuneLib.mrml.prompts.node_content import marker_of
from SAMFineTuneLib.mrml.prompts.prompt_nodes import PromptNodes, prompt_nodes
from SAMFineTuneLib.mrml.scene_nodes import companions_of, is_orphan

if TYPE_CHECKING:
    from SAMFineTuneLib.mrml.prompts.prompt_sync import PromptWatch

_RESTED = {"volume": 0.3, "place": 0.3, "window": 0.5}  # seconds without another change

_log = logging.getLogger(__name__)


class Observers:
    """Adds observers to VTK objects and remembers them. A callback that raises is logged, not shown to VTK.

    `slicer.util.VTKObservationMixin` neither removes the observers of one object nor keeps exceptions from VTK.
    """

    def __init__(self, called: Callable[[], object]):
        """`called` is called after every callback, except after one that returns False because nothing changed."""
        self._called = called
        self._added: list[tuple[object, int]] = []

    def __len__(self) -> int:
        return len(self._added)

    def add(self, thing, event, callback: Callable[..., object], data: str | None = None) -> None:
        """Call `callback(thing)` at an event of a VTK object. With `data` "VTK_INT" or "VTK_OBJECT" it also gets the
        number or object that comes with the event, None for events without one."""
        import vtk

        def observe(caller, _, about=None):
            changed = None
            try:
                changed = callback(caller) if data is None else callback(caller, about)
            except Exception:
                _log.exception("An observer failed")
            if changed is not False:
                self._called()

        if data is not None:
            observe.CallDataType = getattr(vtk, data)
        self._added.append((thing, thing.AddObserver(event, observe)))

    def remove(self, thing=None) -> None:
        """Remove the observers of a VTK object, or all of them."""
        for other, tag in [pair for pair in self._added if thing is None or pair[0] is thing]:
            other.RemoveObserver(tag)
        self._added = [pair for pair in self._added if thing is not None and pair[0] is not thing]


class VolumeWatch:
    """Observes one volume node, its "volume" (voxels and place), its "place" where a transform above it moved, and the
    "window" of its display node."""

    def __init__(self, observers: Observers, clock: Callable[[], float]):
        self._observers, self._clock = observers, clock
        self._node = self._display = None
        self._changes: dict[str, float] = {}  # what changed, and when last

    def watch(self, node) -> None:
        """Observe this node, which may be None, instead of the former one."""
        if self._node is not None:
            self._observers.remove(self._node)
        self._node = node
        if node is not None:
            self._observers.add(node, node.TransformModifiedEvent, lambda _: self._note("place"))
            for event in (node.ImageDataModifiedEvent, "ModifiedEvent"):
                self._observers.add(node, event, self._on_change)
        self._watch_display()

    def forget(self) -> None:
        """Ignore what has changed so far."""
        self._changes.clear()

    @property
    def pending(self) -> bool:
        """Whether something has changed that was not reported yet."""
        return bool(self._changes)

    def has_changed(self, what: str, at_once: bool = False) -> bool:
        """Whether "volume", "place" or "window" has changed and is stable again; True once for each change. `at_once`
        does not wait until it is stable."""
        rested = what in self._changes and (at_once or self._clock() - self._changes[what] >= _RESTED[what])
        if rested:
            del self._changes[what]
        return rested

    def _watch_display(self) -> None:
        display = None if self._node is None else self._node.GetDisplayNode()
        if display is self._display:
            return
        if self._display is not None:
            self._observers.remove(self._display)
        self._display = display
        if display is not None:
            self._observers.add(display, "ModifiedEvent", lambda _: self._note("window"))

    def _on_change(self, _) -> None:
        self._note("volume")
        self._watch_display()

    def _note(self, what: str) -> None:
        self._changes[what] = self._clock()


class SceneWatch:
    """Observes a scene, and the segments of one segmentation node."""

    def __init__(self, scene, observers: Observers, prompts: PromptWatch, session):
        """`session` is the SceneSession, which is called at once about what cannot wait."""
        import slicer

        self.segments_changed = False
        """Whether segments were added, removed, renamed, recoloured or sorted; reset by who has dealt with it."""
        self._scene, self._observers, self._prompts, self._session = scene, observers, prompts, session
        self._orphans = False
        self._companions: list = []  # display and storage nodes of prompts that somebody else removed
        events = slicer.vtkMRMLScene
        observers.add(scene, events.NodeAddedEvent, self._on_node_added, "VTK_OBJECT")
        observers.add(scene, events.NodeAboutToBeRemovedEvent, self._on_node_removed, "VTK_OBJECT")
        observers.add(scene, events.StartSaveEvent, lambda _: session.scene_saves())
        observers.add(scene, events.StartCloseEvent, self._on_start_close)
        observers.add(scene, events.EndCloseEvent, lambda _: prompts.watch_all())
        observers.add(scene, events.EndImportEvent, self._on_end_import)
        prompts.watch_all()

    @property
    def pending(self) -> bool:
        """Whether something happened that was not dealt with yet."""
        return self.segments_changed or self._orphans or bool(self._companions)

    def watch_segments(self, before, node) -> None:
        """Observe the segments of `node`, which may be None, instead of those of `before`."""
        import slicer

        if before is not None:
            self._observers.remove(before)
        if node is not None:
            for name in ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SegmentsOrderModified"):
                self._observers.add(node, getattr(slicer.vtkSegmentation, name), self._on_segments)

    def remove_orphans(self) -> None:
        """Remove prompts and records without volume or segmentation, and display nodes of prompts that are gone."""
        companions, self._companions = self._companions, []
        for node in companions:
            if node.GetScene() is not None:
                self._scene.RemoveNode(node)
        if not (self._orphans or companions):
            return
        self._orphans = False
        for node in filter(is_orphan, prompt_nodes(self._scene)):
            PromptNodes(self._scene, None, None).remove_node(node)
        for node in filter(is_orphan, storage.record_nodes(self._scene)):
            self._scene.RemoveNode(node)

    def _on_segments(self, _) -> None:
        self.segments_changed = True

    def _on_node_added(self, _, node) -> None:
        if marker_of(node) is not None:
            self._prompts.watch(node)
            self._prompts.changed(node)

    def _on_node_removed(self, _, node) -> None:
        self._observers.remove(node)
        if self._scene.IsClosing():
            return
        if marker_of(node) is not None:
            self._companions += companions_of(node)
            self._prompts.let_go(node)
        elif self._session.input_removed(node) or node.IsA("vtkMRMLVolumeNode") or node.IsA("vtkMRMLSegmentationNode"):
            self._orphans = True

    def _on_start_close(self, _) -> None:
        self._companions.clear()
        self._session.scene_closes()

    def _on_end_import(self, _) -> None:
        self._prompts.watch_all()
        self._session.scene_was_imported()
