"""Masks into segments: at once, without touching a neighbour, and without a trace when they are taken back.

Slicer's own ways of writing one slice rebuild the closed surface or copy the whole labelmap at every click. Here
the few voxels concerned are set in the labelmap's memory, by the Segment Editor's own rules (`masking`), and the
surface is marked as stale: `refresh_surface` rebuilds it when the user pauses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_extraction import covered_voxels
from SAMFineTuneLib.images.slice_plane import SlicePlane, inside
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.segments.labelmaps import SURFACE, Grid, Layers, require_editable
from SAMFineTuneLib.mrml.segments.masking import editing_rules, in_range, intensities_at
from SAMFineTuneLib.mrml.segments.ownership import Claim, Ledger, Membership, Shelf, merged, place
from SAMFineTuneLib.mrml.segments.surfaces import new_surfaces


class ClaimInfo(NamedTuple):
    """One mask that is shown: the voxels that it has, and those that it would cover if nobody else had any."""

    segment_id: str
    plane_key: str
    voxels: int
    wanted: int
    since: int
    digest: str


class SegmentWriter:
    """Shows masks in one segmentation node and takes them back.

    Each pair of a segment and a plane has a claim: what its mask added to the segment, and took from others
    where the Segment Editor's settings allow that. Showing another mask there, or None, first gives all of it
    back. What the user drew, before or since, is never part of a claim. A claim is put aside when another mask takes
    its place, and put back when its own mask, by its moment, is shown again: then the voxels are what they were.
    """

    def __init__(self, segmentation_node, volume_node, volume: Volume):
        """`volume` is that of the volume node, as planes and masks refer to it. Raises UserError when the
        segmentation cannot be edited."""
        self._node = segmentation_node
        self._volume_node = volume_node
        self.volume = volume
        self.editor_node = None
        """The vtkMRMLSegmentEditorNode whose masking, intensity range and overwrite mode are honoured."""
        self.save_undo_state: Callable[[], object] | None = None
        """Called before the first change after one by somebody else, for Slicer's own undo: for instance
        `vtkSlicerSegmentEditorLogic.SaveStateForUndo`."""
        require_editable(segmentation_node)
        self._grid = Grid.of(segmentation_node, volume_node)
        self._ledger = Ledger(self._grid.shape)
        self._aside = Shelf()
        self._writing = False
        self._changed_by_others = True
        self._edited = False
        self._to_look_at: list[tuple[str, str]] = []
        self._to_verify: dict[tuple[str, str], None] = {}
        self._batched = False
        self._unannounced: dict[str, None] = {}  # segments in the order in which they were changed
        self._stale: set[str] = set()
        self._observers = [segmentation_node.AddObserver(event, self._on_change) for event in _foreign_events()]

    # ---- showing masks

    def show(
        self,
        segment_id: str,
        plane: SlicePlane,
        mask: np.ndarray | None,
        points=None,
        since: int = 0,
        digest: str = "",
    ) -> bool:
        """Make `mask` (bool [rows, columns]) what the segment's claim on the plane shows; None takes it back.

        `points` (N, 2) are positive points, x and y in the plane's pixels, whose own voxels belong to the mask
        where it is true. A mask that was shown before, by its moment `since` and its digest, gets what it had then;
        without a moment it is always a new one. Returns whether any voxel changed. Raises UserError when the segment
        is gone or the segmentation cannot be edited.
        """
        segmentation = self._segmentation()
        if mask is not None and segmentation.GetSegment(segment_id) is None:
            raise UserError("The segment of this mask is no longer there: add a segment and place the prompts again.")
        if mask is None:
            return self.take_back(segment_id, plane.key)
        grid = self._current_grid()
        old = self._ledger.get(segment_id, plane.key)
        again = self._shown_before(old, segment_id, plane.key, since, digest)
        if again is not None:
            voxels = again.voxels.voxels()
            return self._rearrange(voxels if old in (None, again) else merged(old.voxels.voxels(), voxels), old, again)
        new = np.sort(np.ravel_multi_index(tuple(self._covered(mask, plane, points)), grid.shape))
        voxels = new if old is None else merged(old.voxels.voxels(), new)
        claim = Claim(segment_id, plane.key, number=self._ledger.next_number(), since=since, digest=digest)
        return self._rearrange(voxels, old, claim, new)

    def take_back(self, segment_id: str, plane_key: str) -> bool:
        """As `show` with None, for who knows only the plane's key, as of `claims`."""
        claim = self._ledger.get(segment_id, plane_key)
        if claim is None:
            return False
        self._current_grid()
        if self._ledger.get(segment_id, plane_key) is not claim:
            return False  # went with the grid it was made for
        return self._rearrange(claim.voxels.voxels(), claim, None)

    def _shown_before(self, old: Claim | None, segment_id: str, key: str, since: int, digest: str) -> Claim | None:
        if not since:
            return None
        claim = old if old is not None and old.since == since else self._aside.take(segment_id, key, since)
        return claim if claim is not None and claim.digest == digest else None

    def _covered(self, mask: np.ndarray, plane: SlicePlane, points) -> np.ndarray:
        """Grid voxels (3, N) as k, j, i. In a grid that reaches beyond the volume, none out there."""
        grid = self._grid.volume(self._node)
        places = covered_voxels(mask, plane, grid, points)
        if grid.shape == self.volume.shape and np.allclose(grid.affine, self.volume.affine, atol=1e-4):
            return places
        return places[:, inside(self.volume, grid.ijk_to_ras(places[::-1].T))]

    def _rearrange(
        self, voxels: np.ndarray, old: Claim | None, claim: Claim | None, new: np.ndarray | None = None
    ) -> bool:
        """Lift all claims off the voxels and put back all but `old`, and `claim`: in its turn when it had its voxels
        before, over all others when it gets `new` ones now. Writes the difference; returns whether there was any."""
        work = _Work(Layers(self._segmentation(), self._grid), self._grid, voxels)
        lifted = self._ledger.lift(voxels, work.members)
        self._ledger.lay_down(voxels, lifted, work.members, old, claim if new is None else None)
        if old is not None:
            self._ledger.drop(old.segment, old.plane)
            if old is not claim:
                self._aside.put(old)
        if claim is not None:
            self._to_verify[claim.segment, claim.plane] = None
            if new is not None:
                self._settle(claim, new, work)
            self._ledger.add(claim)
            claim.to_dict()  # packs its voxels: a moment now rather than hundreds of them when they are stored
        return self._write(work)

    def _settle(self, claim: Claim, voxels: np.ndarray, work: _Work) -> None:
        """Give a new claim what the Segment Editor's settings let it have of the voxels."""
        rules = editing_rules(claim.segment, self._node, self.editor_node)
        at = np.searchsorted(work.voxels, voxels)
        permitted = rules.permitted(work.members, len(work.voxels))[at]
        if rules.intensities is not None:
            permitted &= self._in_range(work.places[:, at], rules.intensities)
        claim.wanted = len(at)
        kept = permitted | work.members[claim.segment][at]
        at, weak = at[kept], ~permitted[kept]
        claim.takes_from, claim.keeps_off = rules.takes_from, rules.keeps_off
        takes = {
            segment: work.members[segment][at] & ~weak
            for segment in work.members.segments
            if claim.may_take_from(segment)
        }
        place(claim, work.voxels, at, weak, takes, work.members)

    def _in_range(self, places: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
        source = self.editor_node.GetSourceVolumeNode() or self._volume_node
        ras = self._grid.volume(self._node).ijk_to_ras(places[::-1].T)
        return in_range(intensities_at(source, ras), limits)

    def _write(self, work: _Work) -> bool:
        changes = list(work.members.changed())
        if not changes:
            return False
        if self._changed_by_others and self.save_undo_state is not None:
            self.save_undo_state()
        self._changed_by_others = False
        segmentation = self._segmentation()
        self._writing = True
        try:
            self._make_room(segmentation, work, changes)
            for segment, lost, _ in changes:
                work.clear(segment, lost)
            for segment, _, gained in changes:
                work.set(segment, gained)
            changed = [segment for segment, _, _ in changes]
            for layer in {id(layer): layer for layer in (work.layers.of[segment] for segment in changed)}.values():
                layer.written()
            self._unannounced.update(dict.fromkeys(changed))
            if not self._batched:
                self._announce()
        finally:
            self._writing = False
        return True

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell whoever draws the segments once, at the end, of all that is shown in between."""
        self._batched = True
        try:
            yield
        finally:
            self._batched = False
            self._writing = True
            try:
                self._announce()
            finally:
                self._writing = False

    def _make_room(self, segmentation, work: _Work, changes) -> None:
        """Own labelmaps for segments that are about to overlap; memory where voxels are about to be set."""
        for segment, _, gained in changes:
            others = [other for other in work.layers.together(segment) if other != segment]
            if any((work.members[other] & gained).any() for other in others):
                segmentation.SeparateSegmentLabelmap(segment)
                work.layers = Layers(segmentation, self._grid)
        for segment, lost, gained in changes:
            layer = work.layers.of[segment]
            touched = gained if layer.on_lattice else work.members[segment] | lost
            if touched.any():
                layer.make_room(work.places[:, touched])

    def _announce(self) -> None:
        """Tell views, storage, history and effects, but not the segmentation itself, which would drop surfaces."""
        import slicer

        segmentation = self._segmentation()
        segments = [segment for segment in self._unannounced if segmentation.GetSegment(segment) is not None]
        self._unannounced.clear()
        has_surface = segmentation.ContainsRepresentation(SURFACE)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        for segment_id in segments:
            if has_surface:
                self._stale.add(segment_id)
            segment = segmentation.GetSegment(segment_id)
            if logic.GetSegmentStatus(segment) == logic.NotStarted:
                logic.SetSegmentStatus(segment, logic.InProgress)
            segmentation.InvokeEvent(segmentation.SourceRepresentationModified, segment_id)
            segmentation.InvokeEvent(segmentation.RepresentationModified, segment_id)

    def notice_edits(self, until: Callable[[], bool]) -> None:
        """Look through the claims for voxels that somebody else has changed, which are theirs from now on, until told
        to go on another time: even when they are changed to what the claims say, and unnoticeable, later."""
        if self._edited:
            self._edited = False
            self._to_look_at = [(claim.segment, claim.plane) for claim in self._ledger]
        if not self._to_look_at:
            return
        grid = self._current_grid()
        layers = Layers(self._segmentation(), grid)
        while self._to_look_at:
            work = self._work_on(self._to_look_at.pop(), layers, grid)
            if work is not None:
                self._ledger.notice(work.voxels, work.members)
            if until():
                return

    @property
    def edits_to_notice(self) -> bool:
        """Whether there is anything left to look through."""
        return self._edited or bool(self._to_look_at)

    def verify(self, until: Callable[[], bool]) -> list[ClaimInfo]:
        """Look at what was shown since it was last looked at, until told to go on another time; returns what is not in
        the segments although nobody said that they changed it: Slicer did not keep it. `notice_edits` comes first."""
        lost = []
        grid = self._current_grid()
        layers = Layers(self._segmentation(), grid) if self._to_verify else None
        while self._to_verify:
            place = self._to_verify.popitem()[0]
            work = self._work_on(place, layers, grid)
            if work is not None and self._ledger.is_changed(work.voxels, work.members):
                lost.append(_info(self._ledger.get(*place)))
            if until():
                break
        return lost

    @property
    def to_verify(self) -> bool:
        """Whether there is anything left to look at."""
        return bool(self._to_verify)

    def _work_on(self, place: tuple[str, str], layers: Layers, grid: Grid) -> _Work | None:
        claim = self._ledger.get(*place)
        return None if claim is None or not len(claim.voxels) else _Work(layers, grid, claim.voxels.voxels())

    # ---- the closed surface

    @property
    def surface_stale(self) -> bool:
        """Whether masks were shown since the closed surface was made."""
        return bool(self._stale) and self._segmentation().ContainsRepresentation(SURFACE)

    def refresh_surface(self) -> None:
        """Make the closed surface of a changed segment anew: a second for a large one, so call it from a timer that
        waits until the user pauses, until none is stale."""
        segmentation = self._segmentation()
        self._stale.intersection_update(segmentation.GetSegmentIDs())
        stale = sorted(self._stale)[:1]
        self._stale.difference_update(stale)
        if not stale or not segmentation.ContainsRepresentation(SURFACE):
            return
        layers = Layers(segmentation, self._grid)
        self._writing = True
        try:
            for segment_id, surface in new_surfaces(segmentation, layers, stale).items():
                self._stale.discard(segment_id)
                segmentation.GetSegment(segment_id).AddRepresentation(SURFACE, surface)
                segmentation.InvokeEvent(segmentation.RepresentationModified, segment_id)
        finally:
            self._writing = False

    # ---- claims

    def claims(self) -> tuple[ClaimInfo, ...]:
        """What is shown, oldest first."""
        return tuple(map(_info, self._ledger))

    def forget(self, segment_id: str, plane_key: str | None = None) -> None:
        """Leave the voxels of a segment's masks, or of one, as they are: from now on they are the user's own."""
        for claim in [claim for claim in self._ledger if claim.segment == segment_id]:
            if plane_key in (None, claim.plane):
                self._ledger.drop(claim.segment, claim.plane)
        self._aside.forget(segment_id, plane_key)

    def to_dict(self) -> dict:
        """The claims as plain values for JSON, to be saved with the scene."""
        return {"grid": self._grid.to_dict(), "claims": [claim.to_dict() for claim in self._ledger]}

    def from_dict(self, values: dict) -> bool:
        """Take over the claims of a saved scene; False, and none taken, when they are of another grid or damaged:
        then what they showed is the user's own."""
        try:
            if not Grid.from_dict(values["grid"]).same_as(self._grid):
                return False
            ledger = Ledger(self._grid.shape)
            for entry in values["claims"]:
                claim = Claim.from_dict(entry)
                claim.number = claim.number or ledger.next_number()
                if not len(claim.voxels) or claim.voxels.last() < np.prod(self._grid.shape):
                    ledger.add(claim)  # also one that got nothing, or it would get something now
        except (KeyError, TypeError, ValueError):
            return False
        self._ledger = ledger
        return True

    def close(self) -> None:
        """Let go of the nodes; what is shown stays."""
        for observer in self._observers:
            self._node.RemoveObserver(observer)
        self._observers.clear()

    # ---- the node

    def _segmentation(self):
        return self._node.GetSegmentation()

    def _current_grid(self) -> Grid:
        """The grid at this moment. Claims of another, which the user has replaced, cannot be taken back."""
        require_editable(self._node)
        grid = Grid.of(self._node, self._volume_node)
        if not grid.same_as(self._grid):
            self._grid = grid
            self._ledger = Ledger(grid.shape)
            self._aside = Shelf()
        return self._grid

    def _on_change(self, *_) -> None:
        if not self._writing:
            self._changed_by_others = self._edited = True


def _info(claim: Claim) -> ClaimInfo:
    return ClaimInfo(claim.segment, claim.plane, len(claim.held), claim.wanted, claim.since, claim.digest)


class _Work:
    """Voxels that are about to change, and the segments they are in."""

    def __init__(self, layers: Layers, grid: Grid, voxels: np.ndarray):
        self.voxels = voxels
        self.places = np.stack(np.unravel_index(voxels, grid.shape))
        self.layers = layers
        self._values: dict[int, np.ndarray] = {}
        self.members = Membership(self.layers.of, self._read, len(voxels))

    def _read(self, segment: str) -> np.ndarray:
        layer = self.layers.of[segment]
        if id(layer) not in self._values:
            self._values[id(layer)] = layer.values(self.places)
        return self._values[id(layer)] == layer.labels[segment]

    def clear(self, segment: str, lost: np.ndarray) -> None:
        if lost.any():
            self.layers.of[segment].put(self.places[:, lost], 0)

    def set(self, segment: str, gained: np.ndarray) -> None:
        if gained.any():
            layer = self.layers.of[segment]
            layer.put(self.places[:, gained], layer.labels[segment])


def _foreign_events() -> tuple[int, ...]:
    import slicer

    segmentation = slicer.vtkSegmentation
    return segmentation.SourceRepresentationModified, segmentation.SegmentAdded, segmentation.SegmentRemoved
