"""Observes a scene and notes what happens for the next turn; only what cannot wait is passed on at once."""

from __future__ import annotations

from SAMFineTuneLib.mrml import storage
from SAMFineTuneLib.mrml.observers import Observers
from SAMFineTuneLib.mrml.prompts.prompt_nodes import (
    PromptNodes,
    companions_of,
    is_orphan,
    marker_of,
    prompt_nodes,
)
from SAMFineTuneLib.mrml.prompts.prompt_sync import PromptWatch


class SceneWatch:
    """Observes a scene, and the segments of one segmentation node."""

    def __init__(self, scene, observers: Observers, prompts: PromptWatch, session):
        """`session` is the SceneSession that is told at once of what cannot wait."""
        import slicer

        self.segments_changed = False
        """Whether segments were added, removed, renamed, recoloured or sorted; reset by whoever has dealt with it."""
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
