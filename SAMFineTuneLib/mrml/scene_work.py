"""The work on one volume and one segmentation: its prompts, masks and stored record."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.mrml import storage
from SAMFineTuneLib.mrml.prompts.prompt_nodes import PromptNodes
from SAMFineTuneLib.mrml.prompts.prompt_sync import PromptSync
from SAMFineTuneLib.mrml.segments.labelmaps import is_empty
from SAMFineTuneLib.mrml.segments.mask_display import MaskDisplay
from SAMFineTuneLib.mrml.segments.segment_table import SegmentTable
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter, WrittenMask
from SAMFineTuneLib.mrml.storage import RecordKeeper
from SAMFineTuneLib.session.events import Event, Failed, Notice, StateChanged

_log = logging.getLogger(__name__)

MOVED = (
    "The volume was moved, but its prompts were not: masks are computed again from them, propagated slices are "
    "taken back; propagate again."
)
_NOT_KEPT = (
    "Slicer does not keep the masks that are written into the segments: another module changes them at the same time; "
    "close its tool, then place a prompt or undo."
)
_MOST_REPAIRS = 3  # in a row
_MOST_NAMED = 3
_FEW_MASKS = 30  # whose record is written within milliseconds
_OTHER_IMAGE = (
    "The prompts were placed on another image: their masks are computed again, propagated slices stay as they are."
)


class Work:
    """Prompts, masks and record of one volume and segmentation, while the user works on them."""

    def __init__(
        self,
        client,
        table: SegmentTable,
        prompts: PromptSync,
        masks: MaskDisplay,
        keeper: RecordKeeper,
        tell: Callable[[Event], None],
    ):
        self.table, self.prompts, self.masks, self.keeper = table, prompts, masks, keeper
        self.jobs: set[int] = set()
        """Running propagations, whose masks the document does not have yet."""
        self.sweep_due = True
        """Whether there may be masks in the segments that the session does not have."""
        self._adopted: set[str] = set()  # segments that the session made from found objects
        self._fresh: list[str] = []  # of these, those of which the user was not told yet how many voxels they got
        self._repairs = 0  # in a row
        self._client, self._tell = client, tell
        self._looked_at = set(self._shown())  # masks that were checked for whether they got any voxels

    @property
    def nodes(self) -> PromptNodes:
        """The nodes of the prompts."""
        return self.prompts.nodes

    @property
    def writer(self) -> SegmentWriter:
        """The writer of the masks into the segments."""
        return self.masks.writer

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits to be sent, written, checked or stored, apart from what the session has yet to send."""
        waiting = self.prompts.dirty or self.prompts.held or len(self.masks) or self.jobs or self.sweep_due
        return not waiting and not self.masks.unchecked and self.keeper.current and not self.unwritten

    @property
    def outstanding(self) -> bool:
        """Whether nodes wait to be read, or masks to be written."""
        return (self.prompts.dirty and not self.prompts.held) or bool(len(self.masks))

    @property
    def behind(self) -> bool:
        """Whether the stored document lacks anything."""
        return bool(len(self.masks)) or not self.keeper.current

    @property
    def unwritten(self) -> bool:
        """Whether the record in the scene is older than the keeper's."""
        return self.keeper.outdated or not self.masks.stored

    @property
    def time_to_write(self) -> bool:
        """Whether to store the record now: soon, because Slicer does not announce that it saves; a large record, or one
        that a job keeps changing, only once nothing changes any more.
        """
        small = not self.jobs and len(self.writer.masks()) <= _FEW_MASKS
        return self.unwritten and not len(self.masks) and (small or self.keeper.rested)

    # ---- opening

    def restore(self, record: storage.Record, recognised: dict[str, Any]) -> IntensityWindow | None:
        """Give the session the stored document and return its window. Where it does not belong to the volume that is
        `recognised`, returns None, and the session gets the prompts of the nodes instead."""
        document = record.document
        if document is None:
            return None
        if not storage.same_voxels(record.volume, recognised):
            self._tell(Notice(_OTHER_IMAGE))
            return None
        if not storage.same_place(record.volume, recognised):
            self._tell(Notice(MOVED))
            self.masks.take_back()
            return None
        try:
            segments, prompts, window = storage.contents_of(document)
        except UserError as error:
            self._tell(Notice(str(error)))
            return None
        self._client.restore(document)
        self.table.take_over(segments)
        self.prompts.expect(prompts)
        return window

    # ---- states of the session

    def take_new_segments(self, state: StateChanged, late: Callable[[], bool]) -> bool:
        """Add segments that the session made to Slicer's table until `late()`; returns whether that was all."""
        for info in state.segments:
            if self.table.id_of(info.value) is None:
                segment_id = self.table.adopt(info)
                self._adopted.add(segment_id)
                self._fresh.append(segment_id)
                if late():
                    return False
        return True

    def take(self, state: StateChanged, late: Callable[[], bool]) -> bool:
        """Write a state into segment table and nodes until `late()`; returns whether that was all. Call
        `take_new_segments` first."""
        self._take_segments(state)
        return self.prompts.take(state.prompts, late)

    def _take_segments(self, state: StateChanged) -> None:
        table, known = self.table, {info.value for info in state.segments}
        for segment_id, value in list(table.values.items()):
            if table.knows(value) and value not in known and segment_id in self._adopted:
                self._unadopt(segment_id)
        table.take_over(state.segments)

    def _unadopt(self, segment_id: str) -> None:
        """Remove a segment whose making from a found object was undone, unless the user has drawn in it."""
        self.masks.take_back(segment_id)
        if is_empty(self.table.segmentation.GetSegment(segment_id)):
            self.table.forget(segment_id)
            self._adopted.discard(segment_id)
            self.table.segmentation.RemoveSegment(segment_id)

    def end_job(self, number: int | None) -> None:
        """Note that a propagation has ended, so that the document gets its masks."""
        if number in self.jobs:
            self.jobs.remove(number)
            self.keeper.changed()

    # ---- the document

    def check(self, end: float) -> None:
        """Write the masks once more when the segments do not hold them. Call it when the session has settled."""
        if self.jobs or len(self.masks) or not self.masks.unchecked or not self.writer.editable:
            return
        if self.masks.check(self._client.told, end):
            if not self.masks.unchecked:
                self._repairs = 0
                self._say_what_is_missing()
                self._say_what_got_nothing()
        elif self._repairs < _MOST_REPAIRS:
            self._repairs += 1
            _log.warning("The segments do not hold the session's masks; all are written once more")
            self._client.tell_again()
            self.keeper.changed()
        elif self._repairs == _MOST_REPAIRS:
            self._repairs += 1
            self._tell(Failed(_NOT_KEPT))

    def _say_what_is_missing(self) -> None:
        """Tell the user of found objects that became segments without all their voxels."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        masks, parts = self.writer.masks(), []
        for segment_id in [segment_id for segment_id in fresh if self.table.has(segment_id)]:
            own = [mask for mask in masks if mask.segment_id == segment_id]
            got, wanted = sum(mask.voxels for mask in own), sum(mask.wanted for mask in own)
            if got < wanted:
                parts.append(f"{self.table.segmentation.GetSegment(segment_id).GetName()} got {got} of {wanted} voxels")
        if parts:
            more = f", and {len(parts) - _MOST_NAMED} more" if len(parts) > _MOST_NAMED else ""
            self._tell(Notice(
                f"{'; '.join(parts[:_MOST_NAMED])}{more}: the others belong to other segments, which keep theirs; let "
                "them be overwritten, undo and keep the objects again to change that."
            ))  # fmt: skip

    def _say_what_got_nothing(self) -> None:
        """Tell the user of masks that got no voxel at all, because others keep them or masking excludes them."""
        shown = self._shown()
        new = [mask for place, mask in shown.items() if place not in self._looked_at]
        self._looked_at = set(shown)
        hidden = [mask.segment_id for mask in new if mask.wanted and not mask.voxels]
        for segment_id in dict.fromkeys(hidden):
            if segment_id in self._adopted or not self.table.has(segment_id):
                continue  # `_say_what_is_missing` tells of them
            count = hidden.count(segment_id)
            slices = "one slice" if count == 1 else f"{count} slices"
            self._tell(Notice(
                f"{self.table.segmentation.GetSegment(segment_id).GetName()} got nothing of what was found on "
                f"{slices}: other segments have these voxels and keep them, or the Segment Editor's masking excludes "
                "them."
            ))  # fmt: skip

    def _shown(self) -> dict[tuple[str, str, int], WrittenMask]:
        return {(mask.segment_id, mask.plane_key, mask.since): mask for mask in self.writer.masks()}

    def sweep(self) -> None:
        """Remove masks that the session does not have, because their prompts were deleted while the worker was away.
        Call it when the session has settled."""
        if not self.sweep_due or self.jobs or len(self.masks) or not self.keeper.current or not self.writer.editable:
            return
        self.sweep_due = False
        places = storage.places_of(self.keeper.record.document, self.prompts.volume)
        self.masks.keep_only({(self.table.id_of(value), key) for value, key in places})

    def write_record(self, model: str, adapter: str, recognised: dict[str, Any]) -> None:
        """Store the record in the scene.

        Args:
            model: id of the model.
            adapter: name of the adapter, "" without one.
            recognised: by what the volume is known again.
        """
        self.keeper.outdated, self.masks.stored = False, True
        record = self.keeper.record
        if record.document is None and not len(self.writer.masks()):
            return
        record.values = dict(self.table.values)
        record.owners = self.writer.to_dict()
        record.model, record.adapter = model, adapter
        record.volume = recognised
        nodes = self.nodes
        storage.write_record(nodes.scene, nodes.volume_node, nodes.segmentation_node, record)
