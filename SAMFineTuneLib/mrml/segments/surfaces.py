"""Makes closed surfaces of single segments anew, by Slicer's own conversion with the segmentation's settings.

Converting within the segmentation would rebuild all segments over the whole grid. Here a copy of the part that the
segments fill is converted in a temporary segmentation.
"""

from __future__ import annotations

from SAMFineTuneLib.mrml.segments.labelmaps import BINARY, SURFACE, Grid, Layers, has_no_voxels

_JOINT = "Joint smoothing"


def refresh_surface(segmentation, grid: Grid, segment_id: str) -> set[str]:
    """Make the surface of a segment anew. With joint smoothing also those of segments that share its labelmap, because
    their surfaces depend on each other. Returns the segments whose surfaces are new."""
    import slicer
    import vtk

    layer = Layers(segmentation, grid).of[segment_id]
    joint = float(segmentation.GetConversionParameter(_JOINT) or 0) > 0
    members = set(layer.labels) if joint else {segment_id}
    workshop = slicer.vtkSegmentation()
    workshop.SetSourceRepresentationName(BINARY)
    workshop.CopyConversionParameters(segmentation)
    part = _filled_part(layer.image)
    for member in members if part is not None else ():
        segment = slicer.vtkSegment()
        segment.SetLabelValue(layer.labels[member])
        segment.AddRepresentation(BINARY, part)
        workshop.AddSegment(segment, member)
    made = part is not None and workshop.CreateRepresentation(SURFACE)
    for member in members:
        surface = workshop.GetSegment(member).GetRepresentation(SURFACE) if made else vtk.vtkPolyData()
        segmentation.GetSegment(member).AddRepresentation(SURFACE, surface)
        segmentation.InvokeEvent(segmentation.RepresentationModified, member)
    return members


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
