"""Segments out of the scene: as a labelmap node, or as a file in the geometry of the volume they were drawn on.

Files are written by `images.write_labelmap`, so they are the same as the command line's. The grid is the volume's
own, without the transforms it is under: the file lies on the volume's file, and on the DICOM series it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.segments import SegmentInfo
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.volumes import array_from_matrix

_SAME_GRID = 1e-3  # voxels: what headers lose of a position, over the whole volume


@dataclass(frozen=True, eq=False)
class Labelmap:
    """Segments on the volume's own grid: labels [k, j, i] uint8 or uint16, affine (4×4) voxel → RAS mm."""

    labels: np.ndarray
    affine: np.ndarray
    segments: tuple[SegmentInfo, ...]
    notes: tuple[str, ...]  # sentences: what a label map cannot hold


def labelmap_of(segmentation_node, volume_node, segment_ids: Sequence[str] | None = None) -> Labelmap:
    """The segments (all without `segment_ids`) as label values from 1, in their order.

    Where segments overlap, the earlier one counts. Raises UserError when there is nothing to export.
    """
    if volume_node is None or volume_node.GetImageData() is None:
        raise UserError("There is no volume to export onto; choose the one that was segmented.")
    return _on_grid(segmentation_node, volume_node, segment_ids, own_affine(volume_node), _shape_of(volume_node))


def to_labelmap_node(segmentation_node, volume_node, segment_ids: Sequence[str] | None = None, name: str = ""):
    """A new labelmap node of the segments, under the volume's transform, with their names and colours."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    found = labelmap_of(segmentation_node, volume_node, segment_ids)
    scene = volume_node.GetScene()
    node = scene.AddNewNodeByClass(
        "vtkMRMLLabelMapVolumeNode", name or scene.GenerateUniqueName(f"{segmentation_node.GetName()}-label")
    )
    image = vtk.vtkImageData()
    image.SetDimensions(*found.labels.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(found.labels).reshape(-1), deep=True))
    node.SetAndObserveImageData(image)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(found.affine.reshape(-1).tolist())
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    if node.GetDisplayNode() is not None:
        node.GetDisplayNode().SetAndObserveColorNodeID(_color_table(scene, node.GetName(), found.segments).GetID())
    return node


def export_file(
    path: str | Path,
    segmentation_node,
    volume_node,
    segment_ids: Sequence[str] | None = None,
    dicom_files: Sequence[str | Path] = (),
) -> tuple[str, ...]:
    """Write segments; the ending chooses the format (see `images.write_labelmap`). Returns sentences to show.

    A DICOM SEG (`.dcm`) needs the files of the series that the volume was loaded from. Raises UserError.
    """
    from SAMFineTuneLib.images.labelmap_files import check_output_path, write_labelmap

    check_output_path(path)
    if str(path).lower().endswith(".dcm"):
        found, grid = _on_series(segmentation_node, volume_node, segment_ids, dicom_files)
    else:
        found = labelmap_of(segmentation_node, volume_node, segment_ids)
        grid = Volume(found.labels, found.affine)
    return (*found.notes, *write_labelmap(path, found.labels, grid, found.segments))


def own_affine(volume_node) -> np.ndarray:
    """Array index (i, j, k, 1) → mm of the volume node itself, without the transforms it is under."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    affine = array_from_matrix(matrix)
    start = np.array(volume_node.GetImageData().GetExtent()[::2], float)
    affine[:3, 3] += affine[:3, :3] @ start  # indices begin at the extent's corner, arrays at 0
    return affine


def is_empty(segmentation_node, segment_id: str) -> bool:
    """Whether a segment holds no voxel."""
    import slicer

    image = slicer.vtkOrientedImageData()
    if not segmentation_node.GetBinaryLabelmapRepresentation(segment_id, image) or image.IsEmpty():
        return True
    return not _voxels(image, tuple(image.GetDimensions())[::-1], own_extent=True).any()


# ---- inside


def _on_grid(segmentation_node, volume_node, segment_ids, affine: np.ndarray, shape) -> Labelmap:
    if segmentation_node is None:
        raise UserError("There is no segmentation to export; segment something first.")
    segmentation = segmentation_node.GetSegmentation()
    ids = list(segmentation.GetSegmentIDs()) if segment_ids is None else list(segment_ids)
    if not ids:
        raise UserError("There is no segment to export; add one first.")
    labels = np.zeros(shape, np.uint8 if len(ids) < 256 else np.uint16)
    segments, notes = [], []
    lost = 0
    for value, segment_id in enumerate(ids, start=1):
        segment = segmentation.GetSegment(segment_id)
        if segment is None:
            raise UserError("A segment that was to be exported is no longer there; choose again.")
        segments.append(SegmentInfo(segment.GetName() or segment_id, value, tuple(segment.GetColor())))
        mask = _segment_on_grid(segmentation_node, segment_id, volume_node, affine, shape)
        if not mask.any():
            notes.append(f"Segment “{segment.GetName()}” is empty.")
        lost += int(np.count_nonzero(mask & (labels > 0)))
        labels[mask & (labels == 0)] = value
    if lost:
        notes.append(f"{lost} voxels belong to several segments; the first of them has them in the label map.")
    return Labelmap(labels, affine, tuple(segments), tuple(notes))


def _segment_on_grid(segmentation_node, segment_id: str, volume_node, affine: np.ndarray, shape) -> np.ndarray:
    """bool [k, j, i]: the segment's voxels as they are when they lie on this grid, else the nearest."""
    import slicer

    image = slicer.vtkOrientedImageData()
    segmentation = segmentation_node.GetSegmentation()
    if not segmentation.CreateRepresentation("Binary labelmap"):
        raise UserError("The segmentation cannot be made a label map; show it as a binary labelmap first.")
    if not segmentation_node.GetBinaryLabelmapRepresentation(segment_id, image) or image.IsEmpty():
        return np.zeros(shape, bool)
    between = _transform_between(segmentation_node, volume_node)
    reference = _reference_image(affine, shape)
    if not slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, reference, image, False, False, between
    ):
        raise UserError("The segments could not be brought onto the volume's grid; check their transforms.")
    return _voxels(image, shape)


def _transform_between(segmentation_node, volume_node):
    """vtkGeneralTransform from the segmentation's coordinates to the volume's, None when they are the same."""
    import vtk
    from slicer import vtkMRMLTransformNode

    source, target = segmentation_node.GetParentTransformNode(), volume_node.GetParentTransformNode()
    if source is target:
        return None
    transform = vtk.vtkGeneralTransform()
    vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    return transform


def _reference_image(affine: np.ndarray, shape):
    import slicer
    import vtk

    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*map(int, shape[::-1]))
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(affine, float).reshape(-1).tolist())
    image.SetImageToWorldMatrix(matrix)
    return image


def _voxels(image, shape, own_extent: bool = False) -> np.ndarray:
    """bool [k, j, i] over a grid that begins at index 0, or at the image's own first voxel."""
    from vtk.util.numpy_support import vtk_to_numpy

    scalars = image.GetPointData().GetScalars()
    mask = np.zeros(shape, bool)
    if scalars is None:
        return mask
    extent = image.GetExtent()
    low, high = np.array(extent[::2]), np.array(extent[1::2])
    if own_extent:
        low, high = low - low, high - low
    if (high < low).any():
        return mask
    array = vtk_to_numpy(scalars).reshape((high - low + 1)[::-1]) > 0
    first, last = np.maximum(low, 0), np.minimum(high, np.array(shape[::-1]) - 1)
    if (last < first).any():
        return mask
    there = tuple(slice(a, b + 1) for a, b in zip(first[::-1], last[::-1], strict=True))
    own = tuple(slice(a, b + 1) for a, b in zip((first - low)[::-1], (last - low)[::-1], strict=True))
    mask[there] = array[own]
    return mask


def _on_series(segmentation_node, volume_node, segment_ids, files) -> tuple[Labelmap, Volume]:
    """Labels on the grid of the DICOM series, and a volume that carries its source.

    Slicer may count slices from the other end than the series; voxels then lie on the same places all the same.
    """
    from SAMFineTuneLib.images.dicom import series_of_files

    if not files:
        raise UserError("DICOM SEG refers to a DICOM series, and this volume is not from one; write .seg.nrrd.")
    series = series_of_files([Path(file) for file in files])
    own = own_affine(volume_node)
    steps = np.linalg.solve(series.affine, own)  # own voxel -> voxel of the series
    shape = np.array(_shape_of(volume_node)[::-1])
    turned = np.abs(np.round(steps[:3, :3]))
    far = np.abs(steps - np.round(steps))[:3] @ np.append(shape, 1)
    fits = (turned.sum(axis=0) == 1).all() and (turned.sum(axis=1) == 1).all()
    if not fits or far.max() > max(_SAME_GRID * shape.max(), 0.05) or (turned @ shape != series.shape[::-1]).any():
        raise UserError(
            "The volume no longer lies on its DICOM series (it was resampled or cropped); write .seg.nrrd instead."
        )
    found = _on_grid(segmentation_node, volume_node, segment_ids, own @ np.linalg.inv(np.round(steps)), series.shape)
    return found, replace(series, array=found.labels)


def _color_table(scene, name: str, segments: Sequence[SegmentInfo]):
    import slicer

    node = slicer.vtkMRMLColorTableNode()
    node.SetTypeToUser()
    node.SetHideFromEditors(False)
    node.SetNumberOfColors(max(segment.value for segment in segments) + 1)
    node.SetName(f"{name}_ColorTable")
    node.SetNamesInitialised(True)
    node.SetColor(0, "Background", 0.0, 0.0, 0.0, 0.0)
    for segment in segments:
        node.SetColor(segment.value, segment.name, *segment.color, 1.0)
    return scene.AddNode(node)


def _shape_of(volume_node) -> tuple[int, int, int]:
    return tuple(volume_node.GetImageData().GetDimensions())[::-1]
