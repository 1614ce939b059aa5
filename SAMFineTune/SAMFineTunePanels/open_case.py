"""The case of a cohort that is shown in the views: its nodes, the user's work on it, and its doubtful places."""

import time

import qt
import slicer

IDLE = 60.0  # s without any sign of the user after which time no longer counts as work
TWICE = 1.0  # s within which Accept is ignored, as pressed by mistake


class OpenCase:
    """A case in the views; `labels` has the cohort's names by value, `reason` says why this case was chosen."""

    def __init__(self, key, volume_node, segmentation_node, labels, reason):
        self.key, self.labels, self.reason = key, labels, reason
        self.volume_node, self.segmentation_node = volume_node, segmentation_node
        self.seconds, self.prompts = 0.0, set()  # of work, and numbers of the prompts that were placed
        self.places, self.place = [], -1  # doubtful (label, slice, value), and which was jumped to
        self.kept = self.content = self._content()
        self.changed_at = None  # when the segments were last seen to change
        self.may_be_empty = False  # whether the user has said so
        self._sign, self._signs_since = None, time.monotonic()
        self._counted_at, self._accepts_after = self._signs_since, self._signs_since + TWICE

    def is_too_early(self):
        """Whether Accept comes within a second of the last press or of the case's appearance, so nobody has looked at
        it.
        """
        now = time.monotonic()
        before, self._accepts_after = self._accepts_after, now + TWICE
        return now < before

    @property
    def is_labelled(self):
        """Whether any segment has voxels."""
        return any(stamp for _name, _value, stamp in self._content().values())

    @property
    def is_changed(self):
        """Whether the segments have changed since they were kept."""
        return self.content != self.kept

    @property
    def is_there(self):
        """Whether all of its nodes still exist."""
        return None not in (self.volume_node.GetScene(), self.segmentation_node.GetScene())

    def look(self, session):
        """Note prompts and edits since the last look."""
        if session is not None and session.volume_node is self.volume_node:
            self.prompts |= {prompt.number for prompt in session.prompts}
        now = self._content()
        if now != self.content:
            self.content, self.changed_at = now, time.monotonic()

    def count(self, shown):
        """Count the time since the last call as work if the module is shown and the user is active."""
        now = time.monotonic()
        since, self._counted_at = now - self._counted_at, now
        if not shown:
            return
        mouse = qt.QCursor.pos()
        sign = (mouse.x(), mouse.y(), len(self.prompts), self.changed_at, _offsets())
        if sign != self._sign:
            self._sign, self._signs_since = sign, now
        if now - self._signs_since < IDLE:
            self.seconds += min(since, 1.0)

    def segment_of(self, label):
        """ID of the segment with this name, or ""."""
        segmentation = self.segmentation_node.GetSegmentation()
        for segment_id in segmentation.GetSegmentIDs():
            if segmentation.GetSegment(segment_id).GetName() == label:
                return segment_id
        return ""

    def hide(self):
        """Hide the segments."""
        display = self.segmentation_node.GetDisplayNode()
        if display is not None:
            display.SetVisibility(False)

    def remove(self):
        """Remove its nodes from the scene."""
        for node in (self.segmentation_node, self.volume_node):
            if node.GetScene() is not None:
                slicer.mrmlScene.RemoveNode(node)

    def _content(self):
        from SAMFineTuneLib.mrml.cohort_nodes import content_of

        return content_of(self.segmentation_node)


def _offsets():
    """The positions of the slice views, which change when the user scrolls."""
    return tuple(round(node.GetSliceOffset(), 2) for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"))
