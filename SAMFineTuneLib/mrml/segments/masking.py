"""Where the Segment Editor lets a segment be painted, and what it may paint over.

These are the rules of vtkSlicerSegmentEditorLogic::ModifySegmentByLabelmap, for a few voxels instead of labelmaps. One
difference is deliberate: where visible segments may be overwritten, all of them are. Slicer 5.12 leaves out those that
share a labelmap with a hidden segment and with a visible one that was erased before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.mrml.segments.ownership import Membership
from SAMFineTuneLib.mrml.volume_nodes import volume_from_node


@dataclass(frozen=True)
class Rules:
    """What one segment may do."""

    segment: str
    where: tuple[str, ...] | None = None  # segments that masking depends on; None allows everything
    inside: bool = False  # whether it allows voxels in any of them, or voxels in none
    takes_from: frozenset[str] | None = frozenset()  # None is all
    intensities: tuple[float, float] | None = None
    all_others: bool = False  # whether masking depends on all others, also on later ones

    @property
    def keeps_off(self) -> frozenset[str] | None:
        """Segments whose voxels it may not share; None is any."""
        if self.where is None or self.inside:
            return frozenset()
        return None if self.all_others else frozenset(self.where)

    def permitted(self, members: Membership, count: int) -> np.ndarray:
        """bool (N,): voxels where masking by segments lets the segment be painted."""
        if self.where is None:
            return np.ones(count, bool)
        found = np.zeros(count, bool)
        for segment in self.where:
            found |= members[segment]
        return found if self.inside else ~found


def protect_others(editor_node) -> None:
    """Set a segment editor node so that painting a segment changes no other, as a new session starts. Slicer's own
    default erases what is painted over."""
    import slicer

    editor_node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    editor_node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)


def editing_rules(segment: str, segmentation_node, editor_node) -> Rules:
    """The rules of the Segment Editor's node; without one all other segments are protected."""
    import slicer

    segments = tuple(segmentation_node.GetSegmentation().GetSegmentIDs())
    others = tuple(other for other in segments if other != segment)
    if editor_node is None:
        return Rules(segment, others, all_others=True)
    where, inside = _mask(segments, others, segmentation_node, editor_node)
    intensities = None
    if editor_node.GetSourceVolumeIntensityMask():
        intensities = tuple(map(float, editor_node.GetSourceVolumeIntensityMaskRange()))
    takes_from = _overwritten(others, segmentation_node, editor_node)
    all_others = editor_node.GetMaskMode() == slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments
    return Rules(segment, where, inside, takes_from, intensities, all_others)


def _mask(segments, others, segmentation_node, editor_node) -> tuple[tuple[str, ...] | None, bool]:
    import slicer

    modes = slicer.vtkMRMLSegmentationNode
    mode = editor_node.GetMaskMode()
    if mode == modes.EditAllowedInsideAllSegments:
        return segments, True
    if mode == modes.EditAllowedInsideVisibleSegments:
        return _visible(segments, segmentation_node), True
    if mode == modes.EditAllowedOutsideAllSegments:
        return others, False
    if mode == modes.EditAllowedOutsideVisibleSegments:
        return _visible(others, segmentation_node), False
    if mode == modes.EditAllowedInsideSingleSegment:
        chosen = editor_node.GetMaskSegmentID()
        return ((chosen,) if chosen in segments else ()), True
    return None, False


def _overwritten(others, segmentation_node, editor_node) -> frozenset[str] | None:
    mode = editor_node.GetOverwriteMode()
    if mode == editor_node.OverwriteNone:
        return frozenset()
    if mode == editor_node.OverwriteVisibleSegments:
        return frozenset(_visible(others, segmentation_node))
    return None


def _visible(segments, segmentation_node) -> tuple[str, ...]:
    display = segmentation_node.GetDisplayNode()
    if display is None:
        return ()
    return tuple(segment for segment in segments if display.GetSegmentVisibility(segment))


def in_range(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Whether intensities lie in the editable range, limits included. Limits are truncated for integer intensities."""
    low, high = limits
    if values.dtype.kind in "iu":
        kind = np.iinfo(values.dtype)
        low, high = (np.trunc(np.clip(limit, kind.min, kind.max)) for limit in (low, high))
    return (values >= low) & (values <= high)


def intensities_at(volume_node, ras: np.ndarray) -> np.ndarray:
    """Values (N,) of a volume node at world RAS points (N, 3), interpolated linearly, in the node's own type; its
    background value outside the volume."""
    volume = volume_from_node(volume_node)
    ijk = volume.ras_to_ijk(ras)
    last = np.array(volume.shape[::-1]) - 1
    inside = ((ijk >= -0.5 - 1e-6) & (ijk <= last + 0.5 + 1e-6)).all(axis=1)
    nearest = np.rint(ijk)
    values = np.full(len(ijk), volume_node.GetImageBackgroundScalarComponentAsDouble(0))
    if np.abs(ijk - nearest)[inside].max(initial=0) < 1e-3:  # the volume's own voxels
        i, j, k = nearest[inside].astype(np.intp).T
        values[inside] = volume.array[k, j, i]
    else:
        values[inside] = _between_centres(volume.array, np.clip(ijk[inside], 0, last))
    if volume.array.dtype.kind in "iu":
        values = np.rint(values)
    return values.astype(volume.array.dtype)


def _between_centres(array: np.ndarray, ijk: np.ndarray) -> np.ndarray:
    low = np.floor(ijk).astype(np.intp)
    share = ijk - low
    total = np.zeros(len(ijk))
    for corner in np.ndindex(2, 2, 2):
        at = np.minimum(low + corner, np.array(array.shape[::-1]) - 1)
        weight = np.where(corner, share, 1 - share).prod(axis=1)
        total += weight * array[at[:, 2], at[:, 1], at[:, 0]]
    return total
