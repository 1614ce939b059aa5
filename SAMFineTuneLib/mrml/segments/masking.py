"""Where the Segment Editor allows a segment to be painted, and what it may paint over.

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
    """Where masking allows a segment to be painted, and from which segments it may take voxels."""

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


def editing_rules(segment: str, segmentation_node, editor_node) -> Rules:
    """The rules of the Segment Editor for changing a segment.

    Args:
        segment: id of the segment.
        segmentation_node: that has it.
        editor_node: the Segment Editor's node; without one all other segments are protected.
    """
    import slicer

    segments = tuple(segmentation_node.GetSegmentation().GetSegmentIDs())
    others = tuple(other for other in segments if other != segment)
    if editor_node is None:
        return Rules(others, all_others=True)
    modes, mode = slicer.vtkMRMLSegmentationNode, editor_node.GetMaskMode()
    chosen = tuple(other for other in segments if other == editor_node.GetMaskSegmentID())
    where, inside = {
        modes.EditAllowedInsideAllSegments: (segments, True),
        modes.EditAllowedInsideVisibleSegments: (_visible(segments, segmentation_node), True),
        modes.EditAllowedOutsideAllSegments: (others, False),
        modes.EditAllowedOutsideVisibleSegments: (_visible(others, segmentation_node), False),
        modes.EditAllowedInsideSingleSegment: (chosen, True),
    }.get(mode, (None, False))
    takes_from = {
        editor_node.OverwriteNone: frozenset(),
        editor_node.OverwriteVisibleSegments: frozenset(_visible(others, segmentation_node)),
    }.get(editor_node.GetOverwriteMode())
    limits = editor_node.GetSourceVolumeIntensityMaskRange() if editor_node.GetSourceVolumeIntensityMask() else None
    return Rules(where, inside, takes_from, limits, mode == modes.EditAllowedOutsideAllSegments)


def _visible(segments, segmentation_node) -> tuple[str, ...]:
    display = segmentation_node.GetDisplayNode()
    if display is None:
        return ()
    return tuple(segment for segment in segments if display.GetSegmentVisibility(segment))


def editable_at(volume_node, ras: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Whether intensities lie in the editable range.

    A volume node's intensities are interpolated linearly, in the node's own type; its background value counts outside
    the volume.

    Args:
        volume_node: whose intensities.
        ras: world RAS points (N, 3).
        limits: of the range, which belong to it; truncated for integer intensities.

    Returns:
        Bool (N,).
    """
    from scipy.ndimage import map_coordinates

    volume = volume_from_node(volume_node)
    ijk = volume.ras_to_ijk(ras)
    nearest = np.rint(ijk)
    ijk = np.where(np.abs(ijk - nearest) < 1e-3, nearest, ijk)  # the volume's own voxels
    last = np.array(volume.shape[::-1]) - 1
    inside = ((ijk >= -0.5 - 1e-6) & (ijk <= last + 0.5 + 1e-6)).all(axis=1)
    values = np.full(len(ijk), volume_node.GetImageBackgroundScalarComponentAsDouble(0))
    places = np.clip(ijk[inside], 0, last).T[::-1]
    values[inside] = map_coordinates(volume.array, places, np.float64, order=1, mode="nearest")
    low, high = limits
    if volume.array.dtype.kind in "iu":
        values, kind = np.rint(values), np.iinfo(volume.array.dtype)
        low, high = (np.trunc(np.clip(limit, kind.min, kind.max)) for limit in limits)
    values = values.astype(volume.array.dtype)
    return (values >= low) & (values <= high)
