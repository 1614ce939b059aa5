"""Shows found objects in the views before they become segments, in a segmentation that is not listed and not saved."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.segments.labelmaps import set_up_on
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter
from SAMFineTuneLib.prompts import segment_color

_OPACITY = 0.35


class FoundObjects:
    """Shows one set of objects at a time, a little at each call of `step`."""

    def __init__(self, scene):
        self._scene = scene
        self.node = None
        """The segmentation, None while nothing is shown."""
        self._writer: SegmentWriter | None = None
        self._waiting: deque[tuple[int, SlicePlane, np.ndarray]] = deque()

    def show(self, masks: Sequence[tuple[int, SlicePlane, np.ndarray]], volume_node, volume: Volume) -> None:
        """Show these (object number, plane, mask bool [rows, columns]) instead of the former ones."""
        self.clear()
        self._waiting.extend(masks)
        if masks:
            self.node = self._make(volume_node)
            self._writer = SegmentWriter(self.node, volume_node, volume)

    @property
    def waiting(self) -> int:
        """Masks that are not shown yet."""
        return len(self._waiting)

    def step(self, late) -> None:
        """Show waiting masks until `late()`, at least one."""
        if not self._waiting:
            return
        if self.node.GetScene() is None:
            self.clear()
            return
        try:
            with self._writer.together():
                while self._waiting:
                    self._show(*self._waiting.popleft())
                    if late():
                        return
        except UserError:  # a non-linear transform was put on the volume; this is only a preview
            self._waiting.clear()

    def clear(self) -> None:
        """Show nothing."""
        self._waiting.clear()
        if self._writer is not None:
            self._writer.close()
        node, self.node, self._writer = self.node, None, None
        if node is not None and self._scene.IsNodePresent(node):
            self._scene.RemoveNode(node)

    def _show(self, number: int, plane: SlicePlane, mask: np.ndarray) -> None:
        segment_id = f"object-{number}"
        segmentation = self.node.GetSegmentation()
        if segmentation.GetSegment(segment_id) is None:
            segmentation.AddEmptySegment(segment_id, f"Object {number}", segment_color(number))
        self._writer.write(segment_id, plane, mask)

    def _make(self, volume_node):
        import slicer

        node = self._scene.CreateNodeByClass("vtkMRMLSegmentationNode")
        node.UnRegister(None)
        node.SetName("Found objects")
        constants = slicer.vtkMRMLSubjectHierarchyConstants
        node.SetAttribute(constants.GetSubjectHierarchyExcludeFromTreeAttributeName(), "1")
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        self._scene.AddNode(node)
        hierarchy = self._scene.GetSubjectHierarchyNode()
        if hierarchy is not None and not hierarchy.GetItemByDataNode(node):
            # Slicer makes no item for a hidden node, and would then log an error for every segment.
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
        set_up_on(node, volume_node)
        node.GetDisplayNode().SetSaveWithScene(False)
        node.GetDisplayNode().SetOpacity2DFill(_OPACITY)
        return node
