"""A case of a cohort as nodes: its volume, and a segmentation with the cohort's names; and back into a label map.

Another process reads and writes the files (`service.cohort_process`). Here voxels are copied in steps of a few
milliseconds, so that the window does not stop.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from SAMFineTuneLib.images.slice_plane import aligned_plane, view_axes
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.segment_export import Steps, labelmap_steps
from SAMFineTuneLib.mrml.segments.labelmaps import (
    BINARY,
    first_voxel,
    has_no_voxels,
    image_array,
    new_labelmap,
    set_up_on,
)
from SAMFineTuneLib.mrml.volume_nodes import own_affine
from SAMFineTuneLib.prompts import segment_color
from SAMFineTuneLib.wording import same_name

_AT_ONCE = 1 << 22  # bytes copied in a step


def image_steps(told: Mapping[str, Any]) -> Generator[float, None, tuple[Any, Any]]:
    """Copy a case's voxels and labels into VTK's memory, then delete their files.

    Args:
        told: what the process sent about them: `voxels`, `labels` (paths, "" without labels), `start` (i, j, k) of the
            labels, `affine`.

    Returns:
        vtkImageData of the voxels, and vtkOrientedImageData of the labels or None.
    """
    import slicer
    import vtk

    image = vtk.vtkImageData()
    yield from _copied(told["voxels"], image, (0, 0, 0))
    labels = None
    if told["labels"]:
        plain = vtk.vtkImageData()
        yield from _copied(told["labels"], plain, told["start"])
        labels = slicer.vtkOrientedImageData()
        labels.ShallowCopy(plain)
        labels.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(np.array(told["affine"])))
    return image, labels


def _copied(path: str, image, start) -> Generator[float, None, None]:
    from vtk.util.numpy_support import get_vtk_array_type

    array = np.load(path, mmap_mode="r")
    extent = [(int(first), int(first) + n - 1) for first, n in zip(start, array.shape[::-1], strict=True)]
    image.SetExtent(*[edge for ends in extent for edge in ends])
    image.AllocateScalars(get_vtk_array_type(array.dtype), 1)
    there, flat = image_array(image).reshape(-1), array.reshape(-1)
    step = max(1, _AT_ONCE // array.itemsize)
    for first in range(0, flat.size, step):
        there[first:first + step] = flat[first:first + step]
        yield first / flat.size
    del flat, array  # Windows deletes no file that is open
    Path(path).unlink(missing_ok=True)


def add_case(
    scene, name: str, told: Mapping[str, Any], images: tuple[Any, Any], labels: Mapping[int, str]
) -> Generator[None, None, tuple[Any, Any]]:
    """Add a case to the scene, in steps.

    Args:
        scene: the MRML scene.
        name: of the nodes.
        told: as for `image_steps`, with `window` (low, high, name) and `modality`.
        images: from `image_steps`.
        labels: label value → name; every one becomes a segment, also where nothing is labelled.

    Returns:
        The volume node and the segmentation node.
    """
    import slicer

    image, labelmap = images
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", scene.GenerateUniqueName(name))
    display = scene.AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    display.SetAutoWindowLevel(False)  # before there are voxels: choosing a window takes a look at all of them
    display.SetWindowLevelMinMax(*told["window"][:2])
    display.SetDefaultColorMap()
    volume.SetAndObserveDisplayNodeID(display.GetID())
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.array(told["affine"])))
    volume.SetAndObserveImageData(image)
    if told["modality"] == "CT":  # as Slicer's DICOM reader says it
        units = slicer.vtkCodedEntry()
        units.SetValueSchemeMeaning("[hnsf'U]", "UCUM", "Hounsfield unit")
        volume.SetVoxelValueUnits(units)
    yield
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(f"{name} segmentation"))
    yield
    set_up_on(node, volume)
    segmentation = node.GetSegmentation()
    segmentation.SetSourceRepresentationName(BINARY)
    for value, label in labels.items():
        segment = slicer.vtkSegment()
        segment.SetName(label)
        segment.SetColor(*segment_color(value))
        segment.SetLabelValue(value)
        own = labelmap if labelmap is not None else _empty(told)
        segment.AddRepresentation(BINARY, own)
        segmentation.AddSegment(segment)
    return volume, node


def _empty(told: Mapping[str, Any]):
    """An empty labelmap on the volume's grid."""
    import slicer

    image = slicer.vtkOrientedImageData()
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(np.array(told["affine"])))
    return new_labelmap(image, np.array([[0, 0, 0], [-1, -1, -1]]), np.dtype(np.uint8))


def content_of(segmentation_node) -> dict[str, Any]:
    """A value that changes when a segment is edited, renamed, added or removed: name, label value and time by ID."""
    segmentation, found = segmentation_node.GetSegmentation(), {}
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        image = segment.GetRepresentation(BINARY)
        stamp = 0 if image is None or has_no_voxels(image) else image.GetPointData().GetScalars().GetMTime()
        found[segment_id] = (segment.GetName(), segment.GetLabelValue(), stamp)
    return found


def label_file_steps(path: Path, segmentation_node, volume_node, labels: Mapping[int, str]) -> Steps[tuple[str, ...]]:
    """Write segments as labels [k, j, i] of the cohort's values into an .npy file.

    Segments are matched by name. One that the cohort does not know is left out, and several of one name become one
    structure; a sentence says so. Where segments overlap, the earlier one counts, or the earlier labelmap where several
    hold them.

    Args:
        path: the file.
        segmentation_node: whose segments.
        volume_node: whose voxels the labels have.
        labels: the cohort's structures, names by value.

    Yields:
        The fraction that is written. It is 0.0 for as long as the nodes are needed; after that they may be removed.

    Returns:
        Sentences to show.
    """
    segmentation = segmentation_node.GetSegmentation()
    values = {same_name(name): value for value, name in labels.items()}
    known, notes = {}, []
    for segment_id, (name, _value, stamp) in content_of(segmentation_node).items():
        if same_name(name) in values:
            known[segment_id] = values[same_name(name)]
        elif stamp:
            notes.append(f"Segment “{name}” was left out: the cohort's structures are {', '.join(labels.values())}.")
    for value, count in Counter(known.values()).items():
        if count > 1:
            notes.append(f"{count} segments are named “{labels[value]}”; they became one structure.")
    dtype = np.uint8 if max(labels) < 256 else np.uint16
    shape = tuple(volume_node.GetImageData().GetDimensions()[::-1])
    file = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)  # of zeros
    layers = _layers(segmentation, segmentation_node, volume_node, known, shape)
    step = max(1, _AT_ONCE // 4 // max(1, shape[1] * shape[2]))
    if layers is None:  # the segments have voxels of their own
        found = yield from _still_nothing(labelmap_steps(segmentation_node, volume_node, list(known)))
        notes += [note for note in found.notes if "is empty" not in note]
        layers = [(found.labels, (0, 0, 0), np.array([0, *known.values()], dtype))]
    for array, start, table in layers:
        there, own = _common(shape, array.shape, start)
        for first in range(there[0].start, there[0].stop, step):
            last = min(first + step, there[0].stop)
            part = array[first + start[0]:last + start[0], own[1], own[2]]
            target = file[first:last, there[1], there[2]]
            target[...] = np.where(target == 0, table[part], target)
            yield last / shape[0]
    return tuple(notes)


def _still_nothing(steps: Steps[Any]) -> Generator[float, None, Any]:
    """Run all steps, yielding 0.0 after each."""
    try:
        while True:
            next(steps)
            yield 0.0
    except StopIteration as last:
        return last.value


def _layers(segmentation, segmentation_node, volume_node, known: Mapping[str, int], shape) -> list | None:
    """Labelmaps on the volume's lattice, as (array, its index (k, j, i) of the volume's first voxel, values of the
    cohort by its own); None where one has other voxels."""
    if segmentation_node.GetParentTransformNode() is not volume_node.GetParentTransformNode():
        return None
    layers, tables = {}, {}
    for segment_id, value in known.items():
        segment = segmentation.GetSegment(segment_id)
        image = segment.GetRepresentation(BINARY)
        if image is None or has_no_voxels(image):
            continue
        own = segment.GetLabelValue()
        # A labelmap that two segments share under one value is two layers.
        key = next(n for n in itertools.count() if own not in tables.get((image, n), {}))
        if (image, key) not in layers:
            start = first_voxel(image, own_affine(volume_node), shape)
            if start is None:
                return None
            layers[image, key], tables[image, key] = start[::-1], {}
        tables[image, key][own] = value
    found = []
    for (image, key), start in layers.items():
        array = image_array(image)
        if array.dtype.kind not in "iu" or array.itemsize > 2:
            return None
        table = np.zeros(1 << 8 * array.itemsize, np.uint16)  # negative values count from its end
        for own, value in tables[image, key].items():
            table[own] = value
        found.append((array, start, table))
    return found


def _common(shape, array_shape, start) -> tuple[list[slice], list[slice]]:
    """The part of the volume that an array covers, as slices of the volume and of the array."""
    there, own = [], []
    for n, m, s in zip(shape, array_shape, map(int, start), strict=True):
        first = min(max(0, -s), n)
        last = max(first, min(n, m - s))
        there.append(slice(first, last))
        own.append(slice(first + s, last + s))
    return there, own


def place_on_slice(volume: Volume, volume_node, segmentation_node, segment_id: str, orientation: str, index: int):
    """The middle of a segment on a slice, or of the slice itself where the segment is absent.

    Args:
        volume: the voxels of the volume node.
        volume_node: the volume's node.
        segmentation_node: that has the segment; None means that the segment is absent.
        segment_id: of the segment.
        orientation: of the slice.
        index: of the slice.

    Returns:
        World RAS (3,) in mm.
    """
    plane = aligned_plane(volume, orientation, index)
    middle = plane.pixel_to_ras((np.array(plane.shape[::-1]) - 1) / 2)
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id) if segmentation_node is not None else None
    image = segment.GetRepresentation(BINARY) if segment is not None else None
    if image is None or has_no_voxels(image):
        return middle
    start = first_voxel(image, own_affine(volume_node), volume.shape)
    axis = view_axes(volume, orientation)[2]
    array = image_array(image)
    if start is None or not 0 <= index + start[axis] < array.shape[2 - axis]:
        return middle
    mask = np.take(array, index + start[axis], axis=2 - axis) == segment.GetLabelValue()
    if not mask.any():
        return middle
    rows, columns = (where.mean() for where in np.nonzero(mask))
    at = np.insert([columns, rows], axis, index + start[axis]) - start  # (i, j, k) without the slices' axis is (x, y)
    return volume.ijk_to_ras(at)
