"""Slicer's table of segments and the session's: IDs and label values, names and colours.

The segmentation node decides which segments exist, and their names and colours; the session gets a segment
when it is first used. A session needs distinct names, Slicer does not: later segments of a name get their value added.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from SAMFineTuneLib.images.segment_info import SegmentInfo
from SAMFineTuneLib.prompts.prompt_set import free_segment_name, free_value


class SegmentTable:
    """The label value of each segment, and the names and colours that the session knows."""

    def __init__(self, segmentation_node, values: dict[str, int] | None = None, used: Iterable[int] = ()):
        """`used` are values that the session has given to other segments."""
        self._node = segmentation_node
        self.values: dict[str, int] = dict(values or {})
        """Label value by segment ID; a segment never changes its value."""
        self._told: dict[int, tuple[str, tuple[float, ...]]] = {}
        self._used: set[int] = {*self.values.values(), *used}
        self._awaited: set[int] = set()
        self._former: dict[int | None, str] = {}  # value -> the ID of its segment, which is gone

    @property
    def segmentation(self):
        """The node's vtkSegmentation."""
        return self._node.GetSegmentation()

    def ids(self) -> list[str]:
        """All segments of the node, in order."""
        return list(self.segmentation.GetSegmentIDs())

    def has(self, segment_id: str) -> bool:
        """Whether the segmentation has a segment of this id."""
        return self.segmentation.GetSegment(segment_id) is not None

    def id_of(self, value: int) -> str | None:
        """The segment with a value, None when there is none."""
        return next((segment_id for segment_id, own in self.values.items() if own == value), None)

    def knows(self, value: int) -> bool:
        """Whether the session has a segment of this value, as far as is known."""
        return value in self._told

    def remove_all(self, client) -> None:
        """Remove from the session all segments that it has, as far as is known."""
        for value in self._told:
            client.remove_segment(value)
        self._told = {}

    def use(self, segment_id: str, client) -> int:
        """The label value of a segment, which is added to the session if it is not there yet."""
        value = self.values.get(segment_id)
        if value is None:
            value = self.values[segment_id] = self._free_value()
        if value not in self._told:
            self._told[value] = self._described(segment_id, value)
            client.add_segment(self._told[value][0], value, self._told[value][1])
        return value

    def reserve(self, values: Iterable[int]) -> None:
        """Reserve values for segments that the session makes itself."""
        for segment_id, value in list(self.values.items()):
            if value in values and value not in self._told:
                del self.values[segment_id]  # the session has forgotten the segment and uses its value for another
        self._used.update(values)
        self._awaited.update(values)

    def awaits(self, value: int) -> bool:
        """Whether the session makes a segment of this value itself, and its name is not known yet."""
        return value in self._awaited

    def take_over(self, segments: Iterable[SegmentInfo]) -> None:
        """Remember the segments that the session has."""
        self._told = {info.value: (info.name, tuple(info.color)) for info in segments}
        self._used.update(self._told)
        self._awaited.difference_update(self._told)

    def adopt(self, info: SegmentInfo) -> str:
        """Add a segment to Slicer's table for one that the session made; returns its ID. A segment that comes back gets
        its former ID."""
        before = self._former.get(info.value, "")
        taken = {self.segmentation.GetSegment(segment_id).GetName() for segment_id in self.ids()}
        segment_id = self.segmentation.AddEmptySegment(before, free_segment_name(info.name, taken), info.color)
        self.values[segment_id] = info.value
        self._used.add(info.value)
        self._told[info.value] = self._described(segment_id, info.value)
        return segment_id

    def forget(self, segment_id: str) -> None:
        """Forget a removed segment; its value is reserved in case it comes back."""
        value = self.values.pop(segment_id, None)
        self._told.pop(value, None)
        self._former[value] = segment_id

    def tell_changes(self, client) -> tuple[list[str], list[str]]:
        """Send the session what changed in Slicer's table; returns (removed, renamed or recoloured) segments."""
        gone = [segment_id for segment_id in self.values if not self.has(segment_id)]
        for segment_id in gone:
            value = self.values[segment_id]
            if value in self._told:
                client.remove_segment(value)
            self.forget(segment_id)
        changed = []
        for segment_id, value in self.values.items():
            if value in self._told:
                now = self._described(segment_id, value)
                if now[0] != self._told[value][0] or not np.allclose(now[1], self._told[value][1], atol=1e-4):
                    client.change_segment(value, *now)
                    self._told[value] = now
                    changed.append(segment_id)
        return gone, changed

    def _described(self, segment_id: str, value: int) -> tuple[str, tuple[float, ...]]:
        segment = self.segmentation.GetSegment(segment_id)
        name = (segment.GetName() or "").strip() or segment_id
        taken = {told[0] for other, told in self._told.items() if other != value}
        if name in taken:
            name = f"{name} ({value})"
        return name[:200], tuple(float(min(max(part, 0.0), 1.0)) for part in segment.GetColor())

    def _free_value(self) -> int:
        value = free_value(self._used)
        self._used.add(value)
        return value
