"""Writes masks into segments at once, leaves other segments alone, and removes masks without a trace.

Slicer's own ways of writing one slice rebuild the closed surface or copy the whole labelmap at every click. Here only
the voxels of the slice are set in the labelmap's memory, by the Segment Editor's own rules (`masking`), and the closed
surface is marked as stale: `refresh_surface` makes it anew when the user pauses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_extraction import covered_voxels
from SAMFineTuneLib.images.slice_plane import SlicePlane, box_corners, inside
from SAMFineTuneLib.images.volume import Volume, same_grid
from SAMFineTuneLib.mrml.segments.labelmaps import SURFACE, Grid, Layer, layers_of, refresh_surface, require_editable
from SAMFineTuneLib.mrml.segments.masking import editable_at, editing_rules
from SAMFineTuneLib.mrml.segments.ownership import Membership, OwnedMask, Owners, write_new
from SAMFineTuneLib.mrml.segments.voxel_runs import merged
from SAMFineTuneLib.mrml.volume_nodes import from_array

_SAME_GRID = 1e-3  # mm


class WrittenMask(NamedTuple):
    """A written mask: how many voxels it has, and how many it covers."""

    segment_id: str
    plane_key: str
    voxels: int
    wanted: int
    since: int
    digest: str


class SegmentWriter:
    """Writes masks into one segmentation node and removes them.

    For each pair of a segment and a plane there is one mask, which owns what it added to the segment and what it took
    from others where the Segment Editor's settings allow that (`ownership`). Writing another mask there, or None, first
    gives all of it back. What the user draws never belongs to a mask. An owner whose mask was
    replaced is kept, and written again when its own mask comes back, which is known by its moment: then the voxels are
    what they were.
    """

    def __init__(self, segmentation_node, volume_node, volume: Volume):
        """`volume` is that of the volume node, as planes and masks refer to it. Raises UserError when the
        segmentation cannot be edited."""
        self._node = segmentation_node
        self._volume_node = volume_node
        self.volume = volume
        self.editor_node: Callable[[], object | None] = lambda: None
        """Returns the vtkMRMLSegmentEditorNode whose masking, intensity range and overwrite mode are honoured."""
        self.save_undo_state: Callable[[], object] = lambda: None
        """Called before the first change that follows one from elsewhere, for Slicer's own undo: for instance
        `vtkSlicerSegmentEditorLogic.SaveStateForUndo`.
        """
        self.tell_cut: Callable[[str], object] = lambda segment_id: None
        """Called with a segment when a mask of it reaches beyond the segmentation's voxel grid and is cut there."""
        require_editable(segmentation_node)
        self._grid = Grid.of(segmentation_node, volume_node)
        self._owners = Owners(self._grid.shape)
        self._writing = False
        self._changed_by_others = True
        self._edited = False
        self._to_look_at: dict[tuple[str, str], None] = {}
        self._to_verify: dict[tuple[str, str], None] = {}
        self._batched = False
        self._unannounced: dict[str, None] = {}  # segments in the order in which they were changed
        self._stale_surfaces: set[str] = set()  # segments whose closed surface is older than their voxels
        events = segmentation_node.GetSegmentation()
        self._observers = [
            segmentation_node.AddObserver(event, self._on_change)
            for event in (events.SourceRepresentationModified, events.SegmentAdded, events.SegmentRemoved)
        ]

    # ---- writing masks

    def write(
        self,
        segment_id: str,
        plane: SlicePlane,
        mask: np.ndarray | None,
        points=None,
        since: int = 0,
        digest: str = "",
    ) -> bool:
        """Write a segment's mask on a plane, in place of the former one.

        Args:
            segment_id: the segment.
            plane: the plane.
            mask: bool [rows, columns] on the plane; None removes the mask that is there.
            points: positive points, float (N, 2), x and y in the plane's pixels. Their own voxels belong to the mask
                where it is true.
            since: the mask's moment. A mask that was written before, by its moment and digest, gets the voxels that it
                had then; without a moment it is always a new one.
            digest: identifies the mask.

        Returns:
            Whether any voxel changed.

        Raises:
            UserError: the segment is gone, or the segmentation cannot be edited.
        """
        segmentation = self._segmentation()
        if mask is not None and segmentation.GetSegment(segment_id) is None:
            raise UserError("The segment of this mask no longer exists: add a segment and place the prompts again.")
        if mask is None:
            return self.remove(segment_id, plane.key)
        grid = self._current_grid()
        old = self._owners.get(segment_id, plane.key)
        same = old is not None and old.since == since
        owner = old if same else self._owners.take_former(segment_id, plane.key, since)
        if since and owner is not None and owner.digest == digest:
            voxels, new = owner.voxels.voxels(), None
        else:
            covered = self._covered(segment_id, mask, plane, points)
            voxels = new = np.sort(np.ravel_multi_index(tuple(covered), grid.shape))
            owner = OwnedMask(segment_id, plane.key, number=self._owners.next_number(), since=since, digest=digest)
        if old not in (None, owner):
            voxels = merged(old.voxels.voxels(), voxels)
        return self._rearrange(voxels, old, owner, new)

    def remove(self, segment_id: str, plane_key: str) -> bool:
        """Remove the mask of a segment and a plane; returns whether any voxel changed."""
        owner = self._owners.get(segment_id, plane_key)
        if owner is None:
            return False
        self._current_grid()
        if self._owners.get(segment_id, plane_key) is not owner:
            return False  # it belonged to another grid, which the user has replaced
        return self._rearrange(owner.voxels.voxels(), owner, None)

    def _covered(self, segment_id: str, mask: np.ndarray, plane: SlicePlane, points) -> np.ndarray:
        """Grid voxels (3, N) as k, j, i, of those that lie in the volume."""
        grid = self._grid.volume(self._node)
        if grid.shape == self.volume.shape and same_grid(grid.affine, self.volume.affine, grid.shape, _SAME_GRID):
            return covered_voxels(mask, plane, grid, points)
        # The grid is continued to the edges of the volume, to find what is cut off.
        ends = grid.ras_to_ijk(self.volume.ijk_to_ras(box_corners([0, 0, 0], np.array(self.volume.shape[::-1]) - 1)))
        before = np.maximum(0, np.ceil(-ends.min(axis=0))).astype(int)[::-1]
        beyond = np.maximum(0, np.ceil(ends.max(axis=0)).astype(int)[::-1] - np.array(grid.shape) + 1)
        shape = before + grid.shape + beyond
        longer = Volume(np.broadcast_to(np.uint8(0), shape), from_array(grid.affine, -before[::-1]))
        places = covered_voxels(mask, plane, longer, points)
        places = places[:, inside(self.volume, longer.ijk_to_ras(places[::-1].T))] - before[:, None]
        within = ((places >= 0) & (places < np.array(grid.shape)[:, None])).all(axis=0)
        if not within.any() and mask.any():
            raise UserError(
                f"The mask lies outside the voxel grid of “{self._node.GetName()}”: choose the volume as its "
                "source geometry in the Segment Editor, or take another segmentation."
            )
        if not within.all():
            self.tell_cut(segment_id)
        return places[:, within]

    def _rearrange(
        self, voxels: np.ndarray, old: OwnedMask | None, owner: OwnedMask | None, new: np.ndarray | None = None
    ) -> bool:
        """Restore the voxels to what they are without masks, then write all owners again but `old`, and `owner`: at its
        place in the order when it had its voxels before, over all others when it gets `new` ones now. Returns whether
        any voxel changed."""
        work = _Work(layers_of(self._segmentation(), self._grid), self._grid, voxels)
        overlaps = self._owners.restore(voxels, work.members)
        self._owners.write(voxels, overlaps, work.members, old, owner if new is None else None)
        if old is not None and old is not owner:
            self._owners.put_aside(old)
        if owner is not None:
            self._to_verify[owner.segment, owner.plane] = None
            if new is not None:
                self._settle(owner, new, work)
            self._owners.add(owner)
            owner.to_dict()  # packs its voxels, so that storing hundreds of owners later takes no time
        return self._write(work)

    def _settle(self, owner: OwnedMask, voxels: np.ndarray, work: _Work) -> None:
        """Give a new owner what the Segment Editor's settings let it have of the voxels."""
        rules = editing_rules(owner.segment, self._node, self.editor_node())
        at = np.searchsorted(work.voxels, voxels)
        permitted = rules.permitted(work.members, len(work.voxels))[at]
        if rules.intensities is not None:
            source = self.editor_node().GetSourceVolumeNode() or self._volume_node
            ras = self._grid.volume(self._node).ijk_to_ras(work.places[::-1, at].T)
            permitted &= editable_at(source, ras, rules.intensities)
        owner.wanted = len(at)
        kept = permitted | work.members[owner.segment][at]
        at, permitted = at[kept], permitted[kept]
        owner.takes_from, owner.keeps_off = rules.takes_from, rules.keeps_off
        takes = {
            segment: work.members[segment][at] & permitted
            for segment in work.members.segments
            if owner.may_take_from(segment)
        }
        write_new(owner, work.voxels, at, takes, work.members)

    def _write(self, work: _Work) -> bool:
        changes = list(work.members.changed())
        if not changes:
            return False
        if self._changed_by_others:
            self.save_undo_state()
        self._changed_by_others = False
        segmentation = self._segmentation()
        with self._own_change():
            self._make_room(segmentation, work, changes)
            for segment, lost, _ in changes:
                work.layers[segment].put(work.places[:, lost], 0)
            for segment, _, gained in changes:
                layer = work.layers[segment]
                layer.put(work.places[:, gained], layer.labels[segment])
                layer.written()
                self._unannounced[segment] = None
            if not self._batched:
                self._announce()
        return True

    @contextmanager
    def together(self) -> Iterator[None]:
        """Notify views and other modules once, at the end of the block, of all masks that are written in it."""
        self._batched = True
        try:
            yield
        finally:
            self._batched = False
            with self._own_change():
                self._announce()

    @contextmanager
    def _own_change(self) -> Iterator[None]:
        """Mark changes to the segmentation in the block as this writer's own."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False

    def _make_room(self, segmentation, work: _Work, changes) -> None:
        """Give segments that are about to overlap a labelmap of their own, and labelmaps memory for new voxels."""
        for segment, _, gained in changes:
            others = [other for other in work.layers[segment].labels if other != segment]
            if any((work.members[other] & gained).any() for other in others):
                segmentation.SeparateSegmentLabelmap(segment)
                work.layers = layers_of(segmentation, self._grid)
        for segment, lost, gained in changes:
            layer = work.layers[segment]
            touched = gained if layer.start is not None else work.members[segment] | lost
            if touched.any():
                layer.make_room(work.places[:, touched])

    def _announce(self) -> None:
        """Tell views, storage, history and effects of changed segments; `Modified()` would drop the closed surfaces."""
        import slicer

        segmentation = self._segmentation()
        segments = [segment for segment in self._unannounced if segmentation.GetSegment(segment) is not None]
        self._unannounced.clear()
        if segmentation.ContainsRepresentation(SURFACE):
            self._stale_surfaces.update(segments)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        for segment_id in segments:
            segment = segmentation.GetSegment(segment_id)
            if logic.GetSegmentStatus(segment) == logic.NotStarted:
                logic.SetSegmentStatus(segment, logic.InProgress)
            segmentation.InvokeEvent(segmentation.SourceRepresentationModified, segment_id)
            segmentation.InvokeEvent(segmentation.RepresentationModified, segment_id)

    def notice_edits(self, until: Callable[[], bool]) -> None:
        """Find voxels that were changed elsewhere, and give them to the user, until `until()`. Called often, because a
        later change could hide an earlier one.
        """
        if self._edited:
            self._edited = False
            self._to_look_at = {(owner.segment, owner.plane): None for owner in self._owners}
        for _, work in self._work_on(self._to_look_at, until):
            self._owners.notice(work.voxels, work.members)

    @property
    def edits_to_notice(self) -> bool:
        """Whether any voxels are left to check."""
        return self._edited or bool(self._to_look_at)

    def verify(self, until: Callable[[], bool]) -> list[WrittenMask]:
        """Check what was written since the last call, until `until()`; returns the masks that Slicer did not keep: they
        are missing although no edit was reported. Call `notice_edits` first.
        """
        looked_at = self._work_on(self._to_verify, until)
        return [_info(owner) for owner, work in looked_at if self._owners.is_changed(work.voxels, work.members)]

    @property
    def to_verify(self) -> bool:
        """Whether any masks are left to check."""
        return bool(self._to_verify)

    def _work_on(
        self, places: dict[tuple[str, str], None], until: Callable[[], bool]
    ) -> Iterator[tuple[OwnedMask, _Work]]:
        """The owners of places, and their voxels. Each is removed from `places`, until `until()`."""
        if not places:
            return
        grid = self._current_grid()
        layers = layers_of(self._segmentation(), grid)
        while places:
            owner = self._owners.get(*places.popitem()[0])
            if owner is not None and len(owner.voxels):
                yield owner, _Work(layers, grid, owner.voxels.voxels())
            if until():
                return

    @property
    def editable(self) -> bool:
        """Whether masks can be written and checked now: binary labelmaps below linear transforms."""
        try:
            require_editable(self._node)
        except UserError:
            return False
        return True

    # ---- the closed surface

    @property
    def surface_stale(self) -> bool:
        """Whether masks were written since the closed surface was made."""
        segmentation = self._segmentation()
        self._stale_surfaces.intersection_update(segmentation.GetSegmentIDs())
        return bool(self._stale_surfaces) and segmentation.ContainsRepresentation(SURFACE)

    def refresh_surface(self) -> None:
        """Rebuild the closed surface of one changed segment. That takes up to a second, so call it from a timer while
        the user pauses, until no surface is stale.
        """
        if self.surface_stale:
            with self._own_change():
                self._stale_surfaces -= refresh_surface(self._segmentation(), self._grid, min(self._stale_surfaces))

    # ---- what is written

    def masks(self) -> tuple[WrittenMask, ...]:
        """All written masks, oldest first."""
        return tuple(map(_info, self._owners))

    def forget(self, segment_id: str, plane_key: str | None = None) -> None:
        """Give the voxels of a segment's masks, or of its mask on one plane, to the user: they stay as they are."""
        self._owners.forget(segment_id, plane_key)

    def to_dict(self) -> dict:
        """The owners as plain values for JSON, to be saved with the scene."""
        return {"grid": self._grid.to_dict(), "claims": [owner.to_dict() for owner in self._owners]}

    def from_dict(self, values: dict) -> bool:
        """Restore the owners of a saved scene. Returns False, and restores none, when they are damaged or of a grid
        that the user has replaced: the masks then count as drawn by the user.
        """
        try:
            stored = Grid.from_dict(values["grid"])
            if stored.shape != self._grid.shape:
                return False
            owners = Owners(self._grid.shape)
            for entry in values["claims"]:
                owner = OwnedMask.from_dict(entry)
                owner.number = owner.number or owners.next_number()
                if not len(owner.voxels) or owner.voxels.last() < np.prod(self._grid.shape):
                    owners.add(owner)  # also an owner without voxels, which would get some now
        except (KeyError, TypeError, ValueError):
            return False
        if not (stored.same_as(self._grid) or self._are_held(owners)):
            return False
        self._owners = owners
        return True

    def close(self) -> None:
        """Stop observing the segmentation; written masks stay."""
        for observer in self._observers:
            self._node.RemoveObserver(observer)
        self._observers.clear()

    # ---- the node

    def _segmentation(self):
        return self._node.GetSegmentation()

    def _current_grid(self) -> Grid:
        """The grid as it is now. Owners in another one, which the user has replaced, are given up; when the labelmaps
        have moved along with it, as with a transform that is hardened, they stay."""
        require_editable(self._node)
        grid = Grid.of(self._node, self._volume_node)
        if not grid.same_as(self._grid):
            before, self._grid = self._grid, grid
            if grid.shape != before.shape or not self._are_held(self._owners):
                self._owners = Owners(grid.shape)
        return self._grid

    def _are_held(self, owners: Owners) -> bool:
        """Whether the segments hold in the grid all that owners have written."""
        layers = layers_of(self._segmentation(), self._grid)
        works = (_Work(layers, self._grid, owner.voxels.voxels()) for owner in owners if len(owner.voxels))
        return not any(owners.is_changed(work.voxels, work.members) for work in works)

    def _on_change(self, *_) -> None:
        if not self._writing:
            self._changed_by_others = self._edited = True


def _info(owner: OwnedMask) -> WrittenMask:
    return WrittenMask(owner.segment, owner.plane, int(owner.held.sum()), owner.wanted, owner.since, owner.digest)


class _Work:
    """Voxels that are about to change, and the segments they are in."""

    def __init__(self, layers: dict[str, Layer], grid: Grid, voxels: np.ndarray):
        self.voxels = voxels
        self.places = np.stack(np.unravel_index(voxels, grid.shape))
        self.layers = layers
        self._values: dict[int, np.ndarray] = {}
        self.members = Membership(self.layers, self._read, len(voxels))

    def _read(self, segment: str) -> np.ndarray:
        layer = self.layers[segment]
        if id(layer) not in self._values:
            self._values[id(layer)] = layer.values(self.places)
        return self._values[id(layer)] == layer.labels[segment]
