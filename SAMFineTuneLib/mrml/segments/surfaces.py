"""Makes closed surfaces of single segments anew, by Slicer's own conversion with the segmentation's settings.

Converting within the segmentation would rebuild all segments over the whole grid. Here a copy of the part that the
segments fill is converted in a temporary segmentation.
"""

from __future__ import annotations

from collections.abc import Iterable

from SAMFineTuneLib.mrml.segments.labelmaps import BINARY, SURFACE, Grid, Layers, has_no_voxels

_JOINT = "Joint smoothing"


class StaleSurfaces:
    """Segments whose closed surface is older than their voxels."""

    def __init__(self):
        self._segments: set[str] = set()

    def add(self, segmentation, segment_ids: Iterable[str]) -> None:
        """The voxels of these segments changed."""
        if segmentation.ContainsRepresentation(SURFACE):
            self._segments.update(segment_ids)

    def any(self, segmentation) -> bool:
        """Whether any surface has to be made anew."""
        return bool(self._segments) and segmentation.ContainsRepresentation(SURFACE)

    def refresh_one(self, segmentation, grid: Grid) -> None:
        """Make the surface of one segment anew."""
        self._segments.intersection_update(segmentation.GetSegmentIDs())
        if not self._segments or not segmentation.ContainsRepresentation(SURFACE):
            self._segments.clear()
            return
        first = min(self._segments)
        self._segments.discard(first)
        for segment_id, surface in _new_surfaces(segmentation, Layers(segmentation, grid), [first]).items():
            self._segments.discard(segment_id)
            segmentation.GetSegment(segment_id).AddRepresentation(SURFACE, surface)
            segmentation.InvokeEvent(segmentation.RepresentationModified, segment_id)


def _new_surfaces(segmentation, layers: Layers, segment_ids) -> dict:
    """vtkPolyData by segment ID of these segments. With joint smoothing also of those that share a labelmap with one,
    because their surfaces depend on each other."""
    import slicer
    import vtk

    workshop = slicer.vtkSegmentation()
    workshop.SetSourceRepresentationName(BINARY)
    workshop.CopyConversionParameters(segmentation)
    wanted = set(segment_ids)
    if float(segmentation.GetConversionParameter(_JOINT) or 0) > 0:
        wanted = {other for segment in wanted for other in layers.together(segment)}
    surfaces = {segment: vtk.vtkPolyData() for segment in wanted}
    parts = {layer: _filled_part(layer.image) for layer in {layers.of[segment] for segment in wanted}}
    for segment_id in wanted:
        layer = layers.of[segment_id]
        if parts[layer] is not None:
            segment = slicer.vtkSegment()
            segment.SetLabelValue(layer.labels[segment_id])
            segment.AddRepresentation(BINARY, parts[layer])
            workshop.AddSegment(segment, segment_id)
    if workshop.GetNumberOfSegments() and workshop.CreateRepresentation(SURFACE):
        for segment_id in workshop.GetSegmentIDs():
            surfaces[segment_id] = workshop.GetSegment(segment_id).GetRepresentation(SURFACE)
    return surfaces


def _filled_part(image):
    """A copy of a labelmap around its non-zero voxels; None when it has none."""
    import slicer

    extent = [0] * 6
    resample = slicer.vtkOrientedImageDataResample
    if has_no_voxels(image) or not resample.CalculateEffectiveExtent(image, extent):
        return None
    part = slicer.vtkOrientedImageData()
    resample.CopyImage(image, part, extent)
    return part
