"""Masks into segments: transforms, grids, and representations that differ from the volume's."""

from __future__ import annotations

import numpy as np
import pytest
from mrml.scenes import oriented_image_of, segment_voxels, tilted_volume
from mrml.segment_bench import (
    SHAPE,
    Bench,
    random_mask,
)

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_extraction import covered_voxels
from SAMFineTuneLib.images.slice_plane import aligned_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter
from SAMFineTuneLib.mrml.volume_nodes import volume_from_node


def test_a_transformed_volume_and_segmentation(slicer_scene):
    matrix = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -9], [0, 0, 1, 12], [0, 0, 0, 1.0]])
    bench = Bench(slicer_scene, parent=slicer_scene.add_transform(matrix))
    plane = bench.plane("coronal")
    mask = random_mask(plane.shape, 3)
    bench.writer.write("first", plane, mask)
    assert np.array_equal(bench.voxels("first"), bench.covered(plane, mask))


def test_only_the_volume_is_transformed(slicer_scene):
    """The segmentation stands elsewhere: masks land where the volume is seen, in the segmentation's own voxels."""
    matrix = np.eye(4)
    matrix[:3, 3] = tilted_volume(SHAPE).affine[:3, :3] @ (0, 2, 1)  # two rows and a slice further
    slicer_volume = slicer_scene.add_volume(tilted_volume(SHAPE), parent=slicer_scene.add_transform(matrix))
    volume = volume_from_node(slicer_volume)
    still = slicer_scene.add_volume(tilted_volume(SHAPE))
    node = slicer_scene.add_segmentation(still)
    writer = SegmentWriter(node, slicer_volume, volume)
    plane = aligned_plane(volume, "axial", 3)
    mask = random_mask(plane.shape, 3)
    writer.write("first", plane, mask)
    expected = np.zeros(SHAPE, bool)
    expected[tuple(covered_voxels(mask, plane, volume))] = True
    found = segment_voxels(node, "first", volume)
    assert np.array_equal(found[4, 2:], expected[3, :-2]) and not found[:4].any() and not found[4, :2].any()


@pytest.mark.parametrize("start, size", [((2, 1, 1), (6, 8, 5)), ((-3, -2, -1), (16, 15, 9))])
def test_a_segmentation_over_a_part_or_more_than_the_volume(slicer_scene, start, size):
    """Its reference geometry is another volume's, cut out of or padded around this one."""
    bench = Bench(slicer_scene)
    volume = bench.volume
    affine = volume.affine.copy()
    affine[:3, 3] = volume.ijk_to_ras(start)
    other = slicer_scene.add_volume(Volume(np.zeros(size[::-1], np.int16), affine))
    node = slicer_scene.add_segmentation(other)
    writer = SegmentWriter(node, bench.volume_node, volume)
    plane = bench.plane()
    mask = random_mask(plane.shape, 6)
    writer.write("first", plane, mask)
    grid = volume_from_node(other)
    inside = np.zeros(SHAPE, bool)
    low = np.maximum(start, 0)
    high = np.minimum(np.add(start, size), SHAPE[::-1])
    inside[low[2] : high[2], low[1] : high[1], low[0] : high[0]] = True
    found = segment_voxels(node, "first", grid)
    k, j, i = np.nonzero(found)
    back = np.zeros(SHAPE, bool)
    back[k + start[2], j + start[1], i + start[0]] = True
    assert np.array_equal(back, bench.covered(plane, mask) & inside) and back.any()
    writer.write("first", plane, None)
    assert not segment_voxels(node, "first", grid).any()


def test_a_finer_segmentation_gets_whole_slices(slicer_scene):
    bench = Bench(slicer_scene)
    affine = bench.volume.affine.copy()
    affine[:3, :3] /= (1, 1, 5)
    affine[:3, 3] = bench.volume.ijk_to_ras((0, 0, -0.4))
    fine = slicer_scene.add_volume(Volume(np.zeros((35, 12, 10), np.int16), affine))
    node = slicer_scene.add_segmentation(fine)
    writer = SegmentWriter(node, bench.volume_node, bench.volume)
    plane = bench.plane("axial", 3)
    mask = random_mask(plane.shape, 6)
    writer.write("first", plane, mask)
    found = segment_voxels(node, "first", volume_from_node(fine))
    assert np.array_equal(np.flatnonzero(found.any(axis=(1, 2))), np.arange(15, 20))
    for k in range(15, 20):
        assert np.array_equal(found[k], bench.covered(plane, mask)[3])


def test_segments_from_another_lattice_are_seen_and_protected(slicer_scene):
    """A neighbour imported from a labelmap that is turned against the reference geometry."""
    bench = Bench(slicer_scene, names=("first",))
    turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turned * (1.0, 1.0, 2.0)
    affine[:3, 3] = bench.volume.ijk_to_ras((5, 6, 3)) - affine[:3, :3] @ (6, 6, 3)
    import slicer

    segment = slicer.vtkSegment()
    segment.SetName("foreign")
    segment.AddRepresentation("Binary labelmap", oriented_image_of(np.ones((7, 5, 5), np.uint8), affine, (4, 4, 0)))
    bench.segmentation.AddSegment(segment, "foreign")
    before = segment_image(bench, "foreign")
    plane = bench.plane("axial", 3)
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert np.array_equal(segment_image(bench, "foreign"), before)
    taken = bench.voxels("first")
    assert taken[3].any() and not taken[3].all()
    k, j, i = np.nonzero(taken)
    ras = bench.volume.ijk_to_ras(np.stack([i, j, k], axis=1))
    there = np.linalg.inv(affine[:3, :3]) @ (ras - affine[:3, 3]).T
    inside = (np.abs(there[:2] - 6) < 2.49).all(axis=0) & (np.abs(there[2] - 3) < 3.4)
    assert not inside.any()


def segment_image(bench, segment: str) -> np.ndarray:
    from vtk.util.numpy_support import vtk_to_numpy

    image = bench.segmentation.GetSegment(segment).GetRepresentation("Binary labelmap")
    return vtk_to_numpy(image.GetPointData().GetScalars()).copy()


def test_a_segmentation_without_reference_geometry_gets_the_volumes(slicer_scene):
    volume_node = slicer_scene.add_volume(tilted_volume(SHAPE))
    volume = volume_from_node(volume_node)
    node = slicer_scene.add_segmentation(None, ("first",))
    writer = SegmentWriter(node, volume_node, volume)
    plane = aligned_plane(volume, "axial", 2)
    writer.write("first", plane, np.ones(plane.shape, bool))
    assert segment_voxels(node, "first", volume)[2].all()


def test_closed_surfaces_as_source_are_refused_with_a_sentence(slicer_scene):
    import vtk

    node = slicer_scene.add("vtkMRMLSegmentationNode", "implants")
    volume_node = slicer_scene.add_volume(tilted_volume(SHAPE))
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    volume = volume_from_node(volume_node)
    SegmentWriter(node, volume_node, volume).close()  # still empty: nothing is lost by editing it as labelmaps
    assert node.GetSegmentation().GetSourceRepresentationName() == "Binary labelmap"
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    sphere = vtk.vtkSphereSource()
    sphere.Update()
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "screw")
    with pytest.raises(UserError, match="“implants” stores its segments as Closed surface"):
        SegmentWriter(node, volume_node, volume)


def test_bending_transforms_are_refused(bench):
    import vtk

    transform = bench.slicer_scene.add("vtkMRMLTransformNode", "warp")
    spline = vtk.vtkThinPlateSplineTransform()
    points, bent = vtk.vtkPoints(), vtk.vtkPoints()
    for corner in np.ndindex(2, 2, 2):
        points.InsertNextPoint(*(np.array(corner) * 50.0))
        bent.InsertNextPoint(*(np.array(corner) * 50.0 + (corner[0] * corner[1] * 9, 0, 0)))
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(bent)
    spline.SetBasisToR()
    transform.SetAndObserveTransformToParent(spline)
    bench.node.SetAndObserveTransformNodeID(transform.GetID())
    plane = bench.plane()
    with pytest.raises(UserError, match="non-linear"):
        bench.writer.write("first", plane, np.ones(plane.shape, bool))


def test_a_segment_without_a_labelmap_gets_one(bench):
    bench.segmentation.GetSegment("second").RemoveAllRepresentations()
    plane = bench.plane()
    bench.writer.write("second", plane, np.ones(plane.shape, bool))
    assert bench.voxels("second")[3].all() and not bench.voxels("first").any()


def test_many_segments_need_wider_labels(slicer_scene):
    names = [f"s{number}" for number in range(300)]
    bench = Bench(slicer_scene, names)
    plane = bench.plane()
    half = np.zeros(plane.shape, bool)
    half[:, : plane.shape[1] // 2] = True
    bench.writer.write("s0", plane, half)
    bench.writer.write("s299", plane, ~half)
    assert bench.segmentation.GetSegment("s299").GetLabelValue() == 300
    assert bench.segmentation.GetNumberOfLayers() == 1
    assert np.array_equal(bench.voxels("s0") | bench.voxels("s299"), bench.covered(plane, half | ~half))
    assert not (bench.voxels("s0") & bench.voxels("s299")).any()
    bench.writer.write("s299", plane, None)
    assert not bench.voxels("s299").any() and bench.voxels("s0").any() and not bench.voxels("s44").any()


def test_another_reference_geometry_ends_all_ownership(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    other = bench.slicer_scene.add_volume(Volume(np.zeros((5, 5, 5), np.int16), np.diag([3, 3, 3, 1.0])))
    bench.node.SetReferenceImageGeometryParameterFromVolumeNode(other)
    assert not bench.writer.write("first", plane, None)
    assert bench.writer.masks() == () and bench.voxels("first")[3].all()
