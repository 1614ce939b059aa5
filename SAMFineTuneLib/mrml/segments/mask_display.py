"""Queues masks as they come and writes them into segments while there is time: the session's masks, and objects that
were found but are not segments yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.scene_nodes import new_node
from SAMFineTuneLib.mrml.segments.labelmaps import set_up_on
from SAMFineTuneLib.mrml.segments.segment_table import SegmentTable
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter
from SAMFineTuneLib.prompts import segment_color
from SAMFineTuneLib.service.shown_masks import Shown
from SAMFineTuneLib.session.events import Event, Failed, MaskChanged, Notice

_SURFACE_DELAY = 0.7  # seconds without a new mask before the closed surface is rebuilt
_OPACITY = 0.35  # of found objects


class MaskDisplay:
    """The masks of one segmentation: those waiting to be written, and those already written."""

    def __init__(
        self,
        writer: SegmentWriter,
        table: SegmentTable,
        tell: Callable[[Event], None],
        clock: Callable[[], float],
    ):
        self.writer = writer
        self.stored = True
        """Whether the written masks are also stored in the scene; set by the code that stores them."""
        self._table, self._tell, self._clock = table, tell, clock
        self._waiting: dict[tuple[int, str], MaskChanged] = {}
        self._last = clock()
        self._cut: set[str] = set()  # segments that reach beyond the segmentation's grid, as was told
        writer.tell_cut = self._say_cut
        self._refused: dict[tuple[int, str], str] = {}  # places whose mask could not be written, and why, as was told
        self._put_off = False  # whether some of these could not because the segmentation could not be edited
        self._unchecked = False

    def __len__(self) -> int:
        """Masks that are not written yet."""
        return len(self._waiting)

    def take(self, event: MaskChanged) -> None:
        """Queue a mask in place of an older one of the same segment and plane."""
        place = (event.segment, event.plane.key)
        self._waiting.pop(place, None)
        self._waiting[place] = event

    def show(self, end: float, state_follows: bool = False) -> bool:
        """Write masks into segments, in the order in which they came, until the clock says `end`; at least one.
        `state_follows` says that segments may come that are not in Slicer's table yet. Returns whether there were any.
        """
        if not self._waiting:
            return False
        shown = False
        with self.writer.together():
            for place, event in list(self._waiting.items()):
                segment_id = self._table.id_of(event.segment)
                if segment_id is None and (state_follows or self._table.awaits(event.segment)):
                    continue
                del self._waiting[place]
                if segment_id is not None and self._table.has(segment_id):
                    self._show(segment_id, event)
                    shown = True
                if self._clock() >= end:
                    break
        return shown

    def take_back(self, segment_id: str | None = None) -> None:
        """Remove all masks, or those of a segment, including queued ones."""
        value = None if segment_id is None else self._table.values.get(segment_id)
        for place in [place for place in self._waiting if value in (None, place[0])]:
            del self._waiting[place]
        others = [mask for mask in self.writer.masks() if segment_id not in (None, mask.segment_id)]
        self.keep_only([(mask.segment_id, mask.plane_key) for mask in others])

    def keep_only(self, places: Collection[tuple[str, str]]) -> None:
        """Remove written masks that are not of these segment IDs and plane keys."""
        with self.writer.together():
            for mask in self.writer.masks():
                if (mask.segment_id, mask.plane_key) not in places:
                    self.writer.remove(mask.segment_id, mask.plane_key)
                    self.stored = False

    def forget_gone(self, segment_ids: list[str]) -> None:
        """Forget the masks of segments whose voxels were removed with them."""
        for segment_id in segment_ids:
            self.writer.forget(segment_id)
            self.stored = False

    @property
    def unchecked(self) -> bool:
        """Whether `check` has something to do."""
        return self._unchecked or self.writer.edits_to_notice or self.writer.to_verify

    def check(self, told: Mapping[tuple[int, str], Shown], end: float) -> bool:
        """Whether the segments hold the masks that the session sent (`told`), as far as there is time to check until
        `end`. Voxels that the user has drawn over since do not count. Call it when no mask waits and the segmentation
        can be edited.
        """

        def late() -> bool:
            return self._clock() >= end

        if self._put_off:
            self._put_off = False
            self._refused.clear()
        self.writer.notice_edits(late)
        if self.writer.edits_to_notice:
            return True
        lost = self.writer.verify(late)
        for mask in lost:  # then the mask is written as a new one
            self.writer.forget(mask.segment_id, mask.plane_key)
        if lost or self.writer.to_verify or not self._unchecked or late():
            return not lost
        self._unchecked = False
        shown = {(mask.segment_id, mask.plane_key): (mask.since, mask.digest) for mask in self.writer.masks()}
        for (value, key), mask in told.items():
            segment_id = self._table.id_of(value)
            if segment_id is None or not self._table.has(segment_id) or (value, key) in self._refused:
                continue
            if shown.get((segment_id, key)) != (mask.since, mask.digest):
                return False
        return True

    @property
    def surface_due(self) -> bool:
        """Whether the closed surface is stale, and no mask has come for a while."""
        return self.writer.surface_stale and not self._waiting and self._clock() - self._last >= _SURFACE_DELAY

    def _show(self, segment_id: str, event: MaskChanged) -> None:
        points = event.points if len(event.points) else None
        place = (event.segment, event.plane.key)
        self._refused.pop(place, None)
        self._unchecked = True
        try:
            self.writer.write(segment_id, event.plane, event.mask, points, event.since, event.digest)
        except UserError as error:
            if str(error) not in self._refused.values():  # as it is for each slice of an object
                self._tell(Failed(str(error)))
            self._refused[place] = str(error)
            self._put_off = self._put_off or not self.writer.editable
            return
        self._last = self._clock()
        self.stored = False

    def _say_cut(self, segment_id: str) -> None:
        if segment_id not in self._cut:
            self._cut.add(segment_id)
            segmentation = self._table.segmentation
            self._tell(Notice(
                f"{segmentation.GetSegment(segment_id).GetName()} reaches beyond the segmentation's voxel grid, and is "
                "cut there: choose the volume as its source geometry in the Segment Editor, and prompt it again."
            ))  # fmt: skip


class FoundDisplay:
    """Shows found objects in the views, in a segmentation that is not listed and not saved.

    It shows one set of objects at a time, a little at each call of `step`.
    """

    def __init__(self, scene):
        self._scene = scene
        self.node = None
        """The segmentation, None while nothing is shown."""
        self._writer: SegmentWriter | None = None
        self._waiting: deque[tuple[int, SlicePlane, np.ndarray]] = deque()

    def show(self, masks: Sequence[tuple[int, SlicePlane, np.ndarray]], volume_node, volume: Volume) -> None:
        """Show masks of found objects instead of the former ones.

        Args:
            masks: each as object number, plane, and bool [rows, columns].
            volume_node: what they lie on.
            volume: its voxels.
        """
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

        node = new_node(self._scene, "vtkMRMLSegmentationNode")
        node.SetName("Found objects")
        constants = slicer.vtkMRMLSubjectHierarchyConstants
        node.SetAttribute(constants.GetSubjectHierarchyExcludeFromTreeAttributeName(), "1")
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        self._scene.AddNode(node)
        hierarchy = self._scene.GetSubjectHierarchyNode()
        if not hierarchy.GetItemByDataNode(node):
            # Slicer makes no item for a hidden node, and would then log an error for every segment.
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
        set_up_on(node, volume_node)
        node.GetDisplayNode().SetSaveWithScene(False)
        node.GetDisplayNode().SetOpacity2DFill(_OPACITY)
        return node
