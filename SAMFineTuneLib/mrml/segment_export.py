"""Exports segments as a labelmap node, or as a file in the geometry of the volume that they were drawn on.

`images.labelmap_files` writes the files, so they are the same as the command line's. The grid is the volume's own,
without its parent transforms: the file fits the volume's file, and the DICOM series that it came from.

A large segmentation takes a second or more, and the window must not freeze that long. These functions are therefore
generators, which yield the fraction that is done, a few milliseconds apart. `finished` runs one to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.segment_info import SegmentInfo
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.segments.labelmaps import (
    BINARY,
    first_voxel,
    geometry,
    has_no_voxels,
    image_affine,
    image_array,
)
from SAMFineTuneLib.mrml.volume_nodes import from_array, own_affine

_SAME_GRID = 1e-3  # voxels: rounding of positions in headers, over the whole volume
_SAME_VOXEL = 1e-2  # voxels by which a labelmap may be shifted and still lie on the grid
_AT_ONCE = 1 << 21  # voxels in a step, which takes some milliseconds
_REMOVED = "A segment was removed during the export; export again."

Result = TypeVar("Result")
Steps = Generator[float, None, Result]
"""Yields the fraction that is done."""


@dataclass(frozen=True, eq=False)
class Labelmap:
    """Segments on the volume's own grid: labels [k, j, i] uint8 or uint16, affine (4×4) voxel → RAS mm."""

    labels: np.ndarray
    affine: np.ndarray
    segments: tuple[SegmentInfo, ...]
    notes: tuple[str, ...]  # sentences: what a label map cannot hold


def finished(steps: Steps[Result]) -> Result:
    """Take all steps at once, and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def labelmap_steps(segmentation_node, volume_node, segment_ids: Sequence[str] | None = None) -> Steps[Labelmap]:
    """Make segments a label map, with values from 1 in their order.

    Where segments overlap, the earlier one counts. Edits in between may be included or not.

    Args:
        segmentation_node: whose segments.
        volume_node: whose voxels the label map has.
        segment_ids: which segments, by default all.

    Raises:
        UserError: when there is nothing to export.
    """
    if volume_node is None or volume_node.GetImageData() is None:
        raise UserError("There is no volume to export onto; choose the one that was segmented.")
    if segmentation_node is None:
        raise UserError("There is no segmentation to export; segment something first.")
    segmentation = segmentation_node.GetSegmentation()
    ids = list(segmentation.GetSegmentIDs()) if segment_ids is None else list(segment_ids)
    if not ids:
        raise UserError("There is no segment to export; add one first.")
    if not segmentation.CreateRepresentation(BINARY):
        raise UserError("The segmentation cannot be made a label map; show it as a binary labelmap first.")
    affine, shape = own_affine(volume_node), volume_node.GetImageData().GetDimensions()[::-1]
    labels = np.zeros(shape, np.uint8 if len(ids) < 256 else np.uint16)
    segments = [_described(segmentation, segment_id, value) for value, segment_id in enumerate(ids, start=1)]
    counts, lost = [0] * len(ids), 0
    slabs = _slabs(shape)
    for done, slab in enumerate(slabs):
        there = labels[slab]
        slab_affine = from_array(affine, (0, 0, slab.start))
        for number, segment_id in enumerate(ids):
            yield (done + number / len(ids)) / len(slabs)
            mask = _mask_on(slab_affine, there.shape, volume_node, segmentation_node, segment_id)
            if mask is not None and mask.any():
                counts[number] += int(np.count_nonzero(mask))
                lost += int(np.count_nonzero(there[mask]))
                there[mask & (there == 0)] = number + 1
    notes, same_parent = [], segmentation_node.GetParentTransformNode() is volume_node.GetParentTransformNode()
    for info, segment_id, count in zip(segments, ids, counts, strict=True):
        segment = segmentation.GetSegment(segment_id)
        if segment is None:
            raise UserError(_REMOVED)
        held = yield from _held_voxels(segment)
        note = _what_is_lost(segment.GetRepresentation(BINARY), held, same_parent, affine, shape, count)
        notes += [f"Segment “{info.name}” {note}"] if note else []
    if lost:
        notes.append(f"{lost} voxels belong to several segments; the label map gives them to the first of these.")
    return Labelmap(labels, affine, tuple(segments), tuple(notes))


def labelmap_node_steps(
    segmentation_node, volume_node, segment_ids: Sequence[str] | None = None
) -> Steps[tuple[object, tuple[str, ...]]]:
    """Add a labelmap node of segments to the scene, under the volume's transform, with their names and colours.

    Args:
        segmentation_node: whose segments.
        volume_node: whose voxels the label map has.
        segment_ids: which segments, by default all.

    Returns:
        The node, and sentences about what it cannot hold.
    """
    found = yield from labelmap_steps(segmentation_node, volume_node, segment_ids)
    return _labelmap_node(found, volume_node, f"{segmentation_node.GetName()}-label"), found.notes


def export_steps(
    path: str | Path,
    segmentation_node,
    volume_node,
    segment_ids: Sequence[str] | None = None,
    dicom_files: Sequence[str | Path] = (),
) -> Steps[Callable[[], tuple[str, ...]]]:
    """Prepare a file of segments.

    Args:
        path: its ending chooses the format, see `images.labelmap_files.write_labelmap`.
        segmentation_node: whose segments.
        volume_node: whose voxels the file has.
        segment_ids: which segments, by default all.
        dicom_files: those that the volume was loaded from; a DICOM SEG (`.dcm`) needs them.

    Returns:
        The function that writes the file and returns sentences to show. It uses no node, so it may run in a thread
        beside the scene. It raises UserError as well.

    Raises:
        UserError: when there is nothing to export, or the files of the series are missing.
    """
    is_dicom = str(path).lower().endswith(".dcm")
    if is_dicom:
        require_series(dicom_files)
    found = yield from labelmap_steps(segmentation_node, volume_node, segment_ids)

    def write() -> tuple[str, ...]:
        from SAMFineTuneLib.images.labelmap_files import write_labelmap  # its imports take a moment

        grid = _series_of(found, dicom_files) if is_dicom else Volume(found.labels, found.affine)
        return (*found.notes, *write_labelmap(path, grid.array, grid, found.segments))

    return write


def require_series(dicom_files: Sequence[str | Path]) -> None:
    """Raise UserError unless these are the files of a series to which a DICOM SEG can refer. Reads none of them."""
    if not dicom_files:
        raise UserError("DICOM SEG refers to a DICOM series, and this volume is not from one; write .seg.nrrd.")
    gone = [file for file in dicom_files if not Path(file).is_file()]
    if gone:
        raise UserError(
            f"{len(gone)} of the {len(dicom_files)} files of this volume's DICOM series are no longer where Slicer's "
            "DICOM database says; import the series again, or write .seg.nrrd."
        )


# ---- inside


def _described(segmentation, segment_id: str, value: int) -> SegmentInfo:
    segment = segmentation.GetSegment(segment_id)
    if segment is None:
        raise UserError("A segment to be exported no longer exists; choose again.")
    return SegmentInfo((segment.GetName() or "").strip() or segment_id, value, tuple(segment.GetColor()))


def _slabs(shape) -> list[slice]:
    """Ranges of slices of about _AT_ONCE voxels."""
    step = max(1, _AT_ONCE // max(1, shape[1] * shape[2]))
    return [slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step)]


def _mask_on(affine: np.ndarray, shape, volume_node, segmentation_node, segment_id: str) -> np.ndarray | None:
    """bool [k, j, i] of a segment on a grid in the volume node's own coordinates, resampled by the nearest voxel when
    its voxels are not the grid's; None when the segment is empty."""
    import slicer
    import vtk

    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    image = segment.GetRepresentation(BINARY) if segment is not None else None
    if image is None:
        raise UserError(_REMOVED)
    if image.IsEmpty():
        return None
    source, target = segmentation_node.GetParentTransformNode(), volume_node.GetParentTransformNode()
    first = first_voxel(image, affine, shape, _SAME_VOXEL) if source is target else None
    part = slicer.vtkOrientedImageData()
    resample = slicer.vtkOrientedImageDataResample
    if first is not None:
        low = first + image.GetExtent()[::2]
        resample.CopyImage(image, part, np.stack([low, low + shape[::-1] - 1], axis=1).reshape(-1).tolist())
    else:
        between = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, between)
        if not resample.ResampleOrientedImageToReferenceOrientedImage(
            image, geometry(affine, shape), part, False, False, between
        ):
            raise UserError("The segments could not be brought onto the volume's grid; check their transforms.")
    return image_array(part) == segment.GetLabelValue()


def _held_voxels(segment) -> Steps[int]:
    """Count the voxels of a segment in its own labelmap."""
    image = segment.GetRepresentation(BINARY)
    if image is None or has_no_voxels(image):
        return 0
    array, held = image_array(image), 0
    for slab in _slabs(array.shape):
        yield 1.0
        held += int(np.count_nonzero(array[slab] == segment.GetLabelValue()))
    return held


def _what_is_lost(image, held: int, same_parent: bool, affine: np.ndarray, shape, count: int) -> str:
    """The end of a sentence about a segment that has `count` voxels on the volume's grid, where its own labelmap holds
    another number; "" where nothing is lost."""
    if not held:  # when something was copied nevertheless, it was erased since
        return "" if count else "is empty."
    if held == count:
        return ""
    if same_parent and first_voxel(image, affine, shape, _SAME_VOXEL) is not None:
        return f"reaches beyond the volume: {held - count} of its {held} voxels are left out."
    grids = (held, image_affine(image)), (count, affine)
    before, after = (voxels * abs(np.linalg.det(one[:3, :3])) / 1000 for voxels, one in grids)
    return f"has another voxel grid than the volume and was resampled: {before:.2f} mL became {after:.2f} mL."


def _labelmap_node(found: Labelmap, volume_node, name: str):
    import slicer

    scene = volume_node.GetScene()
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", scene.GenerateUniqueName(name))
    slicer.util.updateVolumeFromArray(node, found.labels)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(found.affine))
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    if node.GetDisplayNode() is not None:
        node.GetDisplayNode().SetAndObserveColorNodeID(_color_table(scene, node.GetName(), found.segments).GetID())
    return node


def _series_of(found: Labelmap, files) -> Volume:
    """Labels on the grid of the DICOM series, as a volume that carries its source.

    Slicer may count slices from the other end than the series; the voxels lie in the same places nevertheless.
    """
    from SAMFineTuneLib.images.read_dicom import series_of_files

    series = series_of_files([Path(file) for file in files])
    steps = np.linalg.solve(series.affine, found.affine)  # from voxels of the labels to voxels of the series
    shape = np.array(found.labels.shape[::-1])
    turned = np.round(steps[:3, :3])
    far = np.abs(steps - np.round(steps))[:3] @ np.append(shape, 1)
    axes = np.abs(turned)
    fits = (axes.sum(axis=0) == 1).all() and (axes.sum(axis=1) == 1).all()
    if not fits or far.max() > max(_SAME_GRID * shape.max(), 0.05) or (axes @ shape != series.shape[::-1]).any():
        raise UserError(
            "The volume no longer lies on its DICOM series (it was resampled or cropped); write .seg.nrrd instead."
        )
    from_axis = axes.argmax(axis=1)  # the labels' axis for each axis i, j, k of the series
    labels = found.labels.transpose([2 - from_axis[axis] for axis in (2, 1, 0)])
    backwards = [axis for axis in range(3) if turned[2 - axis].sum() < 0]  # of the array
    return replace(series, array=np.ascontiguousarray(np.flip(labels, backwards)))


def _color_table(scene, name: str, segments: Sequence[SegmentInfo]):
    import slicer

    node = slicer.vtkMRMLColorTableNode()
    node.SetTypeToUser()
    node.SetHideFromEditors(False)
    node.SetNumberOfColors(max(segment.value for segment in segments) + 1)
    node.SetName(f"{name}_ColorTable")
    node.SetColor(0, "Background", 0.0, 0.0, 0.0, 0.0)
    for segment in segments:
        node.SetColor(segment.value, segment.name, *segment.color, 1.0)
    return scene.AddNode(node)
