"""Masks into segments: what is added, what is protected, what comes back when a mask is taken back."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mrml.conftest import tilted_volume
from mrml.scenes import oriented_image_of, protect_others, segment_voxels

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_extraction import covered_voxels
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, aligned_plane, oblique_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter
from SAMFineTuneLib.mrml.slice_views import plane_of_view, ras_at, settle_view
from SAMFineTuneLib.mrml.volume_nodes import volume_from_node

SHAPE = (7, 12, 10)


class Bench:
    """A small tilted volume with a segmentation and a writer."""

    def __init__(self, slicer_scene, names=("first", "second"), volume: Volume | None = None, parent=None):
        self.slicer_scene = slicer_scene
        self.volume_node = slicer_scene.add_volume(volume or tilted_volume(SHAPE), parent=parent)
        self.volume = volume_from_node(self.volume_node)
        self.node = slicer_scene.add_segmentation(self.volume_node, names)
        self.writer = SegmentWriter(self.node, self.volume_node, self.volume)

    @property
    def segmentation(self):
        return self.node.GetSegmentation()

    def draw(self, segment: str, voxels: np.ndarray, remove: bool = False) -> None:
        """As the user would with Paint: Slicer's own logic, everywhere allowed, others overwritten."""
        draw(self.slicer_scene, self.node, self.volume_node, segment, voxels, self.volume, remove)

    def voxels(self, segment: str) -> np.ndarray:
        return segment_voxels(self.node, segment, self.volume)

    def all(self) -> dict[str, np.ndarray]:
        return {segment: self.voxels(segment) for segment in self.segmentation.GetSegmentIDs()}

    def plane(self, orientation: str = "axial", index: int = 3):
        return aligned_plane(self.volume, orientation, index)

    def covered(self, plane, mask) -> np.ndarray:
        voxels = np.zeros(self.volume.shape, bool)
        voxels[tuple(covered_voxels(mask, plane, self.volume))] = True
        return voxels


def draw(slicer_scene, node, volume_node, segment, voxels, volume, remove=False) -> None:
    logic, editor = slicer_scene.add_editor(node, volume_node)
    editor.SetSelectedSegmentID(segment)
    affine = array_to_local(node, volume)
    image = oriented_image_of(voxels.astype(np.uint8), affine)
    mode = logic.ModificationModeRemove if remove else logic.ModificationModeAdd
    logic.ModifySegmentByLabelmap(node, segment, image, mode, True, False)
    slicer_scene.scene.RemoveNode(editor)


def array_to_local(node, volume: Volume) -> np.ndarray:
    """The volume's matrix in the coordinates of a segmentation node under the same transform."""
    import vtk

    to_world = vtk.vtkMatrix4x4()
    if node.GetParentTransformNode() is not None:
        node.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
    world = np.array([[to_world.GetElement(r, c) for c in range(4)] for r in range(4)])
    return np.linalg.inv(world) @ volume.affine


def box(*ranges) -> np.ndarray:
    """bool [k, j, i], true in k0:k1, j0:j1, i0:i1."""
    voxels = np.zeros(SHAPE, bool)
    voxels[tuple(slice(a, b) for a, b in ranges)] = True
    return voxels


def random_mask(shape, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.5


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.fixture
def bench(slicer_scene):
    return Bench(slicer_scene)


# ---- showing and taking back


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_becomes_the_voxels_it_covers_and_none_takes_it_back(bench, orientation):
    plane = bench.plane(orientation)
    mask = random_mask(plane.shape, 1)
    assert bench.writer.write("first", plane, mask)
    assert np.array_equal(bench.voxels("first"), bench.covered(plane, mask))
    assert not bench.voxels("second").any()
    assert not bench.writer.write("first", plane, mask)  # nothing new
    assert bench.writer.write("first", plane, None)
    assert not bench.voxels("first").any() and bench.writer.masks() == ()
    assert not bench.writer.write("first", plane, None)


def test_an_oblique_mask_becomes_the_voxels_it_covers(bench):
    plane = oblique_plane(bench.volume, bench.volume.ijk_to_ras((5, 6, 3)), (1, 0.3, 0.2), (0.1, -1, 0.5))
    mask = random_mask(plane.shape, 1)
    bench.writer.write("first", plane, mask)
    assert bench.voxels("first").any()
    assert np.array_equal(bench.voxels("first"), bench.covered(plane, mask))


def test_the_voxel_of_a_point_belongs_to_its_mask(bench):
    plane = bench.plane("sagittal")
    mask = np.zeros(plane.shape, bool)
    mask[7, 5] = True  # one pixel that may hold no voxel's centre
    bench.writer.write("first", plane, mask, points=[(5.2, 6.9)])
    i, j, k = np.rint(bench.volume.ras_to_ijk(plane.pixel_to_ras((5.2, 6.9)))).astype(int)
    assert bench.voxels("first")[k, j, i]


def test_a_new_mask_replaces_the_old_one(bench):
    plane = bench.plane()
    first, second = random_mask(plane.shape, 1), random_mask(plane.shape, 2)
    bench.writer.write("first", plane, first)
    bench.writer.write("first", plane, second)
    assert np.array_equal(bench.voxels("first"), bench.covered(plane, second))
    assert len(bench.writer.masks()) == 1


def test_what_the_user_drew_before_stays(bench):
    drawn = box((2, 5), (3, 9), (2, 8))
    bench.draw("first", drawn)
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert bench.voxels("first").sum() > drawn.sum()
    empty = np.zeros(plane.shape, bool)
    bench.writer.write("first", plane, empty)
    assert np.array_equal(bench.voxels("first"), drawn)
    bench.writer.write("first", plane, None)
    assert np.array_equal(bench.voxels("first"), drawn)


def test_neighbours_are_protected_without_an_editor_node(bench):
    drawn = box((2, 5), (3, 9), (2, 8))
    bench.draw("second", drawn)
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert np.array_equal(bench.voxels("second"), drawn)
    own = np.zeros(SHAPE, bool)
    own[3] = True
    assert np.array_equal(bench.voxels("first"), own & ~drawn)
    assert bench.segmentation.GetNumberOfLayers() == 1  # no layer is spent on it


def test_crossing_masks_are_unions(bench):
    axial, sagittal = bench.plane("axial"), bench.plane("sagittal")
    oblique = oblique_plane(bench.volume, bench.volume.ijk_to_ras((5, 6, 3)), (1, 0.3, 0.2), (0.1, -1, 0.5))
    masks = {plane.key: (plane, random_mask(plane.shape, 5)) for plane in (axial, sagittal, oblique)}
    for plane, mask in masks.values():
        bench.writer.write("first", plane, mask)
    for gone in list(masks):
        plane, _ = masks.pop(gone)
        bench.writer.write("first", plane, None)
        union = np.zeros(SHAPE, bool)
        for plane, mask in masks.values():
            union |= bench.covered(plane, mask)
        assert np.array_equal(bench.voxels("first"), union)


def test_a_segment_that_is_gone_is_a_sentence(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.segmentation.RemoveSegment("first")
    with pytest.raises(UserError, match="no longer exist"):
        bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert not bench.writer.write("first", plane, None)
    assert bench.writer.masks() == ()


def test_a_renamed_segment_is_the_same_segment(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.segmentation.GetSegment("first").SetName("liver")
    bench.writer.write("first", plane, None)
    assert not bench.voxels("first").any()


# ---- what the user does in between


def test_a_stroke_in_between_crops_the_labelmap_and_nothing_is_lost(bench):
    plane, other = bench.plane("axial", 3), bench.plane("axial", 5)
    mask = random_mask(plane.shape, 4)
    bench.writer.write("first", plane, mask)
    drawn = box((1, 2), (3, 5), (4, 6))
    bench.draw("second", drawn)
    image = bench.segmentation.GetSegment("first").GetRepresentation("Binary labelmap")
    assert image.GetDimensions()[2] == 3  # Slicer cropped it to slices 1 to 3
    bench.writer.write("first", other, mask)
    both = bench.covered(plane, mask) | bench.covered(other, mask)
    assert np.array_equal(bench.voxels("first"), both)
    assert np.array_equal(bench.voxels("second"), drawn)
    bench.writer.write("first", plane, None)
    assert np.array_equal(bench.voxels("first"), bench.covered(other, mask))


def test_what_the_user_erases_of_a_mask_stays_erased(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.draw("first", box((3, 4), (0, 6), (0, 10)), remove=True)
    bench.writer.write("second", bench.plane("sagittal"), None)
    bench.writer.write("first", bench.plane("sagittal", 4), np.zeros(bench.plane("sagittal").shape, bool))
    assert not bench.voxels("first")[3, :6].any() and bench.voxels("first")[3, 6:].all()
    bench.writer.write("first", plane, None)
    assert not bench.voxels("first").any()


def test_what_the_user_paints_over_a_mask_stays_painted(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    drawn = box((2, 5), (0, 6), (0, 10))
    bench.draw("second", drawn)
    bench.writer.write("first", plane, None)
    assert np.array_equal(bench.voxels("second"), drawn) and not bench.voxels("first").any()


# ---- geometry


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


# ---- the Segment Editor's masking and overwriting, against Slicer's own logic

MASKS = (
    "EditAllowedEverywhere",
    "EditAllowedInsideAllSegments",
    "EditAllowedInsideVisibleSegments",
    "EditAllowedOutsideAllSegments",
    "EditAllowedOutsideVisibleSegments",
    "EditAllowedInsideSingleSegment",
)
OVERWRITES = ("OverwriteAllSegments", "OverwriteVisibleSegments", "OverwriteNone")


def drawn_bench(slicer_scene, separate: str = "") -> Bench:
    """Four segments: three side by side in one layer, one of which is hidden, and one in a layer of its own."""
    bench = Bench(slicer_scene, ("first", "second", "hidden", "apart"))
    bench.draw("first", box((2, 5), (0, 4), (0, 5)))
    bench.draw("second", box((2, 5), (4, 8), (0, 6)))
    bench.draw("hidden", box((2, 5), (8, 12), (0, 7)))
    bench.segmentation.SeparateSegmentLabelmap("apart")
    overlapping(bench, "apart", box((2, 5), (2, 10), (3, 9)))
    if separate:
        bench.segmentation.SeparateSegmentLabelmap(separate)
    bench.node.GetDisplayNode().SetSegmentVisibility("hidden", False)
    return bench


def overlapping(bench: Bench, segment: str, voxels: np.ndarray) -> None:
    logic, editor = bench.slicer_scene.add_editor(bench.node, bench.volume_node)
    editor.SetSelectedSegmentID(segment)
    editor.SetOverwriteMode(editor.OverwriteNone)
    image = oriented_image_of(voxels.astype(np.uint8), array_to_local(bench.node, bench.volume))
    logic.ModifySegmentByLabelmap(bench.node, segment, image, logic.ModificationModeAdd, True, False)
    bench.slicer_scene.scene.RemoveNode(editor)


@pytest.mark.parametrize("separate", ["", "first"])
@pytest.mark.parametrize("intensities", [None, (-300.0, 700.0), (-300.7, 700.9)])
@pytest.mark.parametrize("overwrite", OVERWRITES)
@pytest.mark.parametrize("mask_mode", MASKS)
def test_masking_and_overwriting_are_what_slicers_logic_does(
    lasting_scene, mask_mode, overwrite, intensities, separate
):
    import slicer

    ours, theirs = drawn_bench(lasting_scene, separate), drawn_bench(lasting_scene, separate)
    before = ours.all()
    assert same(before, theirs.all())
    plane = ours.plane("coronal", 4) if intensities else ours.plane("axial", 3)
    mask = random_mask(plane.shape, 8)
    for bench in (ours, theirs):
        logic, editor = lasting_scene.add_editor(bench.node, bench.volume_node)
        editor.SetSelectedSegmentID("first")
        editor.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, mask_mode))
        editor.SetMaskSegmentID("second")
        editor.SetOverwriteMode(getattr(editor, overwrite))
        if intensities:
            editor.SetSourceVolumeIntensityMask(True)
            editor.SetSourceVolumeIntensityMaskRange(*intensities)
        if bench is ours:
            bench.writer.editor_node = lambda editor=editor: editor
            bench.writer.write("first", plane, mask)
        else:
            modifier = oriented_image_of(
                bench.covered(plane, mask).astype(np.uint8), array_to_local(bench.node, bench.volume)
            )
            logic.ModifySegmentByLabelmap(bench.node, "first", modifier, logic.ModificationModeAdd, True, False)
    found, expected = ours.all(), theirs.all()
    for segment in expected:
        assert np.array_equal(found[segment], expected[segment]), segment
    assert ours.segmentation.GetNumberOfLayers() <= theirs.segmentation.GetNumberOfLayers()
    ours.writer.write("first", plane, None)
    assert same(ours.all(), before)
    lasting_scene.scene.Clear(True)


def test_an_intensity_range_of_a_source_volume_on_another_grid(slicer_scene):
    """The editor's source volume is turned against the segmentation: Slicer resamples it, and so is it read here."""
    ours, theirs = Bench(slicer_scene), Bench(slicer_scene)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) * (1.5, 1.5, 3.0)
    affine[:3, 3] = ours.volume.ijk_to_ras((5, 6, 3)) - affine[:3, :3] @ (15, 15, 8)
    k, j, i = np.indices((17, 31, 31))
    source = slicer_scene.add_volume(Volume((20 * i + 10 * j - 15 * k).astype(np.float32), affine))
    plane = ours.plane()
    mask = np.ones(plane.shape, bool)
    for bench in (ours, theirs):
        logic, editor = slicer_scene.add_editor(bench.node, source)
        editor.SetSelectedSegmentID("first")
        editor.SetSourceVolumeIntensityMask(True)
        editor.SetSourceVolumeIntensityMaskRange(300, 420)
        if bench is ours:
            bench.writer.editor_node = lambda editor=editor: editor
            bench.writer.write("first", plane, mask)
        else:
            modifier = oriented_image_of(bench.covered(plane, mask).astype(np.uint8), bench.volume.affine)
            logic.ModifySegmentByLabelmap(bench.node, "first", modifier, logic.ModificationModeAdd, True, False)
    expected = theirs.voxels("first")
    assert 5 < expected.sum() < 110
    assert (ours.voxels("first") != expected).sum() <= 1  # rounding at the range's edge


def test_protect_others_keeps_every_neighbour(slicer_scene):
    bench = drawn_bench(slicer_scene)
    _, editor = slicer_scene.add_editor(bench.node, bench.volume_node)
    bench.writer.editor_node = lambda: editor
    protect_others(editor)
    before = bench.all()
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    after = bench.all()
    assert after.pop("first").sum() > before.pop("first").sum() and same(after, before)


# ---- any sequence of masks

KEYS = [("axial", 2), ("axial", 3), ("coronal", 5), ("sagittal", 4), ("oblique", 0)]


def plane_of(bench: Bench, kind: str, index: int):
    if kind == "oblique":
        return oblique_plane(bench.volume, bench.volume.ijk_to_ras((5, 6, 3)), (1, 0.3, 0.2), (0.1, -1, 0.5))
    return bench.plane(kind, index)


steps = st.lists(
    st.tuples(
        st.sampled_from(("first", "second", "apart")), st.sampled_from(KEYS), st.one_of(st.none(), st.integers(0, 9))
    ),
    min_size=1,
    max_size=12,
)
relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(steps)
def test_protected_any_sequence_keeps_what_was_drawn_and_leaves_no_trace(lasting_scene, sequence):
    bench = drawn_bench(lasting_scene)
    before = bench.all()
    shown = {}
    for segment, key, seed in sequence:
        plane = plane_of(bench, *key)
        mask = None if seed is None else random_mask(plane.shape, seed)
        bench.writer.write(segment, plane, mask)
        shown[segment, plane.key] = (plane, mask)
        now = bench.all()
        for name, drawn in before.items():
            assert now[name][drawn].all()  # nobody loses what the user drew
            allowed = drawn.copy()
            for (owner, _), (of_plane, of_mask) in shown.items():
                if owner == name and of_mask is not None:
                    allowed |= bench.covered(of_plane, of_mask)
            assert not (now[name] & ~allowed).any()  # nobody grows beyond its masks
        grown = {name: now[name] & ~before[name] for name in now}
        assert all(not (one & other).any() for one, other in itertools.combinations(grown.values(), 2))
    for segment, key in shown:
        bench.writer.write(segment, shown[segment, key][0], None)
    assert same(bench.all(), before) and bench.writer.masks() == ()
    lasting_scene.scene.Clear(True)


modes = st.tuples(st.sampled_from(MASKS), st.sampled_from(OVERWRITES))


@relaxed
@given(st.lists(st.tuples(steps, modes), min_size=1, max_size=3), st.integers(0, 99))
def test_whatever_is_allowed_taking_all_back_leaves_no_trace(lasting_scene, chapters, order):
    """Also when the settings change in between, and masks are taken back in any order: neighbours get theirs."""
    import slicer

    bench = drawn_bench(lasting_scene)
    before = bench.all()
    _, editor = lasting_scene.add_editor(bench.node, bench.volume_node)
    editor.SetMaskSegmentID("second")
    bench.writer.editor_node = lambda: editor
    shown = {}
    for sequence, (mask_mode, overwrite) in chapters:
        editor.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, mask_mode))
        editor.SetOverwriteMode(getattr(editor, overwrite))
        for segment, key, seed in sequence:
            plane = plane_of(bench, *key)
            bench.writer.write(segment, plane, None if seed is None else random_mask(plane.shape, seed))
            shown[segment, plane.key] = plane
    for index in np.random.default_rng(order).permutation(len(shown)):
        segment, key = list(shown)[index]
        bench.writer.write(segment, shown[segment, key], None)
    after = bench.all()
    for name in before:
        assert np.array_equal(after[name], before[name]), name
    assert bench.writer.masks() == ()
    lasting_scene.scene.Clear(True)


@relaxed
@given(steps, st.integers(0, 99))
def test_masks_everywhere_with_overwriting_are_replayed_by_the_logic(lasting_scene, sequence, seed):
    """Only showing, each mask once: then the segments are what Slicer's logic makes of the same masks in turn."""
    ours, theirs = drawn_bench(lasting_scene), drawn_bench(lasting_scene)
    mode = ("OverwriteAllSegments", "OverwriteNone")[seed % 2]
    logic, editor = lasting_scene.add_editor(theirs.node, theirs.volume_node)
    editor.SetOverwriteMode(getattr(editor, mode))
    own_editor = lasting_scene.add_editor(ours.node, ours.volume_node)[1]
    own_editor.SetOverwriteMode(getattr(editor, mode))
    ours.writer.editor_node = lambda: own_editor
    done = set()
    for segment, key, number in sequence:
        if number is None or (segment, key) in done:
            continue
        done.add((segment, key))
        plane = plane_of(ours, *key)
        mask = random_mask(plane.shape, number)
        ours.writer.write(segment, plane, mask)
        editor.SetSelectedSegmentID(segment)
        modifier = oriented_image_of(ours.covered(plane, mask).astype(np.uint8), theirs.volume.affine)
        logic.ModifySegmentByLabelmap(theirs.node, segment, modifier, logic.ModificationModeAdd, True, False)
        assert same(ours.all(), theirs.all())
    lasting_scene.scene.Clear(True)


# ---- undo and redo


class Steps:
    """What a session does with a writer: masks that come at moments, and come back at the same ones."""

    def __init__(self, bench: Bench, seed: int):
        self.bench, self.random = bench, np.random.default_rng(seed)
        self.moment = self.at = 0
        self.history: list[tuple[dict, dict]] = [({}, bench.all())]
        self.drawn = np.zeros(SHAPE, bool)  # where somebody drew: voxels there are not what they were

    def show(self, segment: str, key, seed: int | None) -> set[str]:
        """A step; returns the segments that it changed."""
        self.moment += 1
        before = self.bench.all()
        shown = dict(self.history[self.at][0])
        shown.pop((segment, key), None)
        if seed is not None:
            shown[segment, key] = (seed, self.moment)
        self._put(segment, key, shown.get((segment, key)))
        now = self.bench.all()
        del self.history[self.at + 1 :]
        self.history.append((shown, now))
        self.at += 1
        return {name for name in now if not np.array_equal(now[name], before[name])}

    def go(self, steps: int) -> None:
        """Undo, or redo; masks come in any order."""
        self.at = min(max(self.at + steps, 0), len(self.history) - 1)
        shown, voxels = self.history[self.at]
        there = {(mask.segment_id, mask.plane_key): mask.since for mask in self.bench.writer.masks()}
        keys = {plane_of(self.bench, *key).key: key for key in KEYS}
        places = sorted({*shown, *((segment, keys[plane]) for segment, plane in there)})
        for index in self.random.permutation(len(places)):
            segment, key = places[index]
            wanted = shown.get((segment, key))
            if (wanted or (0, 0))[1] != there.get((segment, plane_of(self.bench, *key).key), 0):
                self._put(segment, key, wanted)
        now = self.bench.all()
        for name in voxels:
            assert np.array_equal(now[name] & ~self.drawn, voxels[name] & ~self.drawn), name

    def draw(self, segment: str, seed: int, remove: bool) -> np.ndarray:
        """Returns the voxels that were newly drawn there."""
        low = self.random.integers(0, np.array(SHAPE) - 3)
        stroke = box(*((n, n + 1 + (seed + axis) % 3) for axis, n in enumerate(low)))
        before = self.bench.all()
        self.bench.draw(segment, stroke, remove)
        self.bench.writer.notice_edits(lambda: False)
        now = self.bench.all()
        for name in now:
            self.drawn |= now[name] != before[name]
        self.history[self.at] = (self.history[self.at][0], now)
        return now[segment] & ~before[segment]

    def store(self) -> None:
        """As when a scene is saved and loaded: what was undone is gone."""
        stored = json.loads(json.dumps(self.bench.writer.to_dict()))
        editor = self.bench.writer.editor_node
        self.bench.writer.close()
        self.bench.writer = SegmentWriter(self.bench.node, self.bench.volume_node, self.bench.volume)
        self.bench.writer.editor_node = editor
        assert self.bench.writer.from_dict(stored)
        self.history, self.at = [self.history[self.at]], 0

    def _put(self, segment: str, key, wanted) -> None:
        plane = plane_of(self.bench, *key)
        if wanted is None:
            self.bench.writer.write(segment, plane, None)
        else:
            seed, moment = wanted
            mask = random_mask(plane.shape, seed)
            self.bench.writer.write(segment, plane, mask, since=moment, digest=str(seed))


names_of_segments = st.sampled_from(("first", "second", "hidden", "apart"))
shows = st.tuples(
    st.just("show"), names_of_segments, st.sampled_from(KEYS), st.one_of(st.none(), st.integers(0, 5))
)
goes = st.tuples(st.just("go"), st.integers(-4, 4))
stores = st.tuples(st.just("store"))
mode_changes = st.tuples(st.just("mode"), modes)
strokes = st.tuples(st.just("draw"), names_of_segments, st.integers(0, 8), st.booleans())


@relaxed
@given(
    st.lists(st.one_of(shows, shows, goes, stores, mode_changes, strokes), min_size=3, max_size=14), st.integers(0, 99)
)
def test_undo_and_redo_bring_back_every_voxel(lasting_scene, sequence, seed):
    """In every mode, on planes that cross, with strokes in between, and masks sent in any order."""
    import slicer

    bench = drawn_bench(lasting_scene)
    _, editor = lasting_scene.add_editor(bench.node, bench.volume_node)
    editor.SetMaskSegmentID("second")
    editor.SetOverwriteMode(editor.OverwriteNone)
    bench.writer.editor_node = lambda: editor
    steps = Steps(bench, seed)
    for what, *arguments in sequence:
        if what == "mode":
            mask_mode, overwrite = arguments[0]
            editor.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, mask_mode))
            editor.SetOverwriteMode(getattr(editor, overwrite))
        else:
            getattr(steps, what)(*arguments)
    for _ in range(len(steps.history)):
        steps.go(-1)
    for _ in range(len(steps.history)):
        steps.go(1)
    lasting_scene.scene.Clear(True)


@relaxed
@given(st.lists(st.one_of(shows, shows, goes, stores, strokes), min_size=3, max_size=14), st.integers(0, 99))
def test_protected_a_step_changes_its_segment_alone_and_no_stroke(lasting_scene, sequence, seed):
    bench = drawn_bench(lasting_scene)
    steps = Steps(bench, seed)
    drawn = {name: np.zeros(SHAPE, bool) for name in bench.all()}
    for what, *arguments in sequence:
        found = getattr(steps, what)(*arguments)
        if what == "show":
            assert found <= {arguments[0]}
        if what == "draw":
            segment, _, remove = arguments
            now = bench.all()
            for name in drawn:
                drawn[name] &= now[name]
            drawn[segment] |= found
        now = bench.all()
        assert all(now[name][drawn[name]].all() for name in drawn)
    lasting_scene.scene.Clear(True)


def test_five_touching_segments_are_cleared_and_come_back(slicer_scene):
    """Each protected from the others; a sixth changes none, and what one leaves no other one takes by itself."""
    names = [f"s{number}" for number in range(6)]
    bench = Bench(slicer_scene, names)
    steps = Steps(bench, 1)
    for number, name in enumerate(names[:5]):
        for key in (KEYS[number % 4], KEYS[(number + 1) % 4]):
            assert steps.show(name, key, number) <= {name}
    before = bench.all()
    for name in names[:5]:
        for key in KEYS[:4]:
            steps.show(name, key, None)
    assert not any(voxels.any() for voxels in bench.all().values())
    steps.go(-20)
    assert same(bench.all(), before)
    assert steps.show("s5", KEYS[0], 9) == {"s5"}
    assert steps.show("s0", KEYS[0], None) == {"s0"}
    steps.go(-2)
    assert same(bench.all(), before)


def test_a_stroke_over_a_mask_and_back_is_a_stroke(bench):
    """Noticed while it differs from the mask, it stays when the mask goes."""
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    stroke = box((3, 4), (0, 6), (0, 10))
    bench.draw("second", stroke)
    assert bench.writer.edits_to_notice
    bench.writer.notice_edits(lambda: False)
    assert not bench.writer.edits_to_notice
    bench.draw("first", stroke)
    bench.writer.write("first", plane, None)
    assert np.array_equal(bench.voxels("first"), stroke) and not bench.voxels("second").any()


def test_somebody_who_exchanges_the_labelmap_at_every_change_is_noticed(bench):
    import slicer

    def empty(*_):
        bench.segmentation.GetSegment("first").AddRepresentation("Binary labelmap", slicer.vtkOrientedImageData())

    tag = bench.segmentation.AddObserver(bench.segmentation.RepresentationModified, empty)
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.segmentation.RemoveObserver(tag)
    (lost,) = bench.writer.verify(lambda: False)
    assert (lost.segment_id, lost.plane_key) == ("first", plane.key) and not bench.writer.to_verify
    bench.writer.forget("first", plane.key)
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert bench.voxels("first")[3].all() and not bench.writer.verify(lambda: False)


def test_what_is_shown_together_is_told_once(bench):
    heard = []
    bench.segmentation.AddObserver(bench.segmentation.SourceRepresentationModified, lambda *_: heard.append(1))
    with bench.writer.together():
        for index in range(4):
            bench.writer.write("first", bench.plane("axial", index), np.ones(bench.plane().shape, bool))
        assert not heard
    assert heard == [1] and bench.voxels("first")[:4].all()
    bench.writer.write("first", bench.plane("axial", 5), np.ones(bench.plane().shape, bool))
    assert heard == [1, 1] and not bench.writer.edits_to_notice


# ---- saving, forgetting, closing


def test_ownership_survives_json_and_a_new_writer(bench):
    before = bench.all()
    plane, other = bench.plane("axial"), bench.plane("sagittal")
    bench.writer.write("first", plane, random_mask(plane.shape, 1))
    bench.writer.write("second", other, random_mask(other.shape, 2))
    saved = json.loads(json.dumps(bench.writer.to_dict()))
    masks = bench.writer.masks()
    bench.writer.close()
    writer = SegmentWriter(bench.node, bench.volume_node, bench.volume)
    assert writer.from_dict(saved) and writer.masks() == masks
    writer.write("first", plane, None)
    writer.write("second", other, None)
    assert same(bench.all(), before)


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("grid"),
        lambda saved: saved["grid"].update(shape=[1, 2, 3]),
        lambda saved: saved["claims"][0].pop("voxels"),
        lambda saved: saved["claims"][0].update(voxels="no base64"),
        lambda saved: saved["claims"][0].update(voxels=""),
        lambda saved: saved.update(claims=None),
    ],
)
def test_damaged_ownership_is_not_taken_over(bench, damage):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    saved = json.loads(json.dumps(bench.writer.to_dict()))
    damage(saved)
    writer = SegmentWriter(bench.node, bench.volume_node, bench.volume)
    assert not writer.from_dict(saved) and writer.masks() == ()
    assert bench.voxels("first")[3].all()


def test_forgotten_masks_are_the_users(bench):
    plane, other = bench.plane("axial", 2), bench.plane("axial", 5)
    for each in (plane, other):
        bench.writer.write("first", each, np.ones(each.shape, bool))
    bench.writer.forget("first", plane.key)
    assert not bench.writer.write("first", plane, None)
    bench.writer.write("first", other, None)
    assert bench.voxels("first")[2].all() and not bench.voxels("first")[5].any()
    bench.writer.write("first", other, np.ones(other.shape, bool))
    bench.writer.forget("first")
    assert bench.writer.masks() == ()


def test_closing_leaves_no_observer(bench):
    def observers() -> int:
        return sum(bench.node.HasObserver(event) for event in range(1, 100000) if event in events)

    import slicer

    kinds = slicer.vtkSegmentation
    events = {kinds.SourceRepresentationModified, kinds.SegmentAdded, kinds.SegmentRemoved}
    assert observers() == 3
    bench.writer.close()
    assert observers() == 0
    bench.writer.close()


# ---- Slicer's own undo


def test_slicers_undo_takes_back_masks_and_keeps_strokes(bench):
    logic, editor = bench.slicer_scene.add_editor(bench.node, bench.volume_node)
    protect_others(editor)
    logic.SetSegmentationHistory(history(bench))
    bench.writer.editor_node = lambda: editor
    saves = []
    bench.writer.save_undo_state = lambda: saves.append(logic.SaveStateForUndo())

    stroke = box((1, 2), (3, 6), (2, 5))
    logic.SaveStateForUndo()  # as every effect does before it changes anything
    bench.draw("first", stroke)
    plane, other = bench.plane("axial", 3), bench.plane("axial", 4)
    for each in (plane, other):
        bench.writer.write("first", each, np.ones(each.shape, bool))
    assert saves == [True]  # once, not at every mask
    second_stroke = box((6, 7), (3, 6), (2, 5))
    logic.SaveStateForUndo()
    bench.draw("first", second_stroke)
    bench.writer.write("first", plane, None)
    assert len(saves) == 2

    with_masks = stroke.copy()
    with_masks[3:5] = True
    logic.Undo()
    assert np.array_equal(bench.voxels("first"), with_masks | second_stroke)
    logic.Undo()
    assert np.array_equal(bench.voxels("first"), with_masks)
    logic.Undo()
    assert np.array_equal(bench.voxels("first"), stroke)
    bench.writer.write("first", other, np.ones(other.shape, bool))  # goes on from there
    again = stroke.copy()
    again[4] = True
    assert np.array_equal(bench.voxels("first"), again)
    bench.writer.write("first", other, None)
    assert np.array_equal(bench.voxels("first"), stroke)


def history(bench):
    import slicer

    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(bench.segmentation)
    return history


def test_without_a_change_no_undo_state_is_saved(bench):
    saves = []
    bench.writer.save_undo_state = lambda: saves.append(1)
    plane = bench.plane()
    bench.writer.write("first", plane, np.zeros(plane.shape, bool))
    assert saves == []
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.writer.write("first", plane, None)
    assert saves == [1]


# ---- the closed surface, the views, and who is told


def points_of(surface) -> np.ndarray:
    from vtk.util.numpy_support import vtk_to_numpy

    if surface is None or surface.GetNumberOfPoints() == 0:
        return np.zeros((0, 3))
    return np.round(vtk_to_numpy(surface.GetPoints().GetData()).astype(float), 4)


def surface_of(bench, segment: str):
    return bench.segmentation.GetSegment(segment).GetRepresentation("Closed surface")


@pytest.mark.parametrize("joint", [False, True])
def test_the_surface_is_rebuilt_when_asked_and_equals_a_new_one(bench, joint):
    bench.segmentation.SetConversionParameter("Joint smoothing", str(int(joint)))
    bench.draw("first", box((2, 5), (3, 9), (2, 5)))
    bench.draw("second", box((2, 5), (3, 9), (5, 8)))
    bench.node.CreateClosedSurfaceRepresentation()
    before = points_of(surface_of(bench, "first"))
    assert not bench.writer.surface_stale
    for index in (5, 6):
        plane = bench.plane("axial", index)
        bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert bench.writer.surface_stale
    assert np.array_equal(points_of(surface_of(bench, "first")), before)  # kept, not dropped, not rebuilt
    bench.writer.refresh_surface()
    assert not bench.writer.surface_stale
    fresh = {name: points_of(surface_of(bench, name)) for name in ("first", "second")}
    assert len(fresh["first"]) > len(before)
    bench.node.RemoveClosedSurfaceRepresentation()
    bench.node.CreateClosedSurfaceRepresentation()
    for name, points in fresh.items():
        anew = points_of(surface_of(bench, name))
        assert len(points) == len(anew)
        assert np.allclose(points[np.lexsort(points.T)], anew[np.lexsort(anew.T)], atol=1e-3)


def test_an_emptied_segment_has_an_empty_surface(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.node.CreateClosedSurfaceRepresentation()
    assert len(points_of(surface_of(bench, "first")))
    bench.writer.write("first", plane, None)
    bench.writer.refresh_surface()
    assert len(points_of(surface_of(bench, "first"))) == 0


def test_without_a_surface_none_is_made(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert not bench.writer.surface_stale
    bench.writer.refresh_surface()
    assert not bench.segmentation.ContainsRepresentation("Closed surface")


def test_storage_and_status_know_of_the_change(bench):
    import slicer

    heard = []
    bench.node.AddObserver(bench.segmentation.RepresentationModified, lambda *_: heard.append(1))
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert heard
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.GetSegmentStatus(bench.segmentation.GetSegment("first")) == logic.InProgress
    assert logic.GetSegmentStatus(bench.segmentation.GetSegment("second")) == logic.NotStarted


@pytest.mark.parametrize("surface", [False, True])
def test_the_slice_view_is_redrawn_with_the_mask(slicer_scene, phantom, surface):
    bench = Bench(slicer_scene, volume=phantom)
    bench.volume_node.GetDisplayNode().SetAutoWindowLevel(False)
    bench.volume_node.GetDisplayNode().SetWindowLevelMinMax(-1000, 1000)
    bench.draw("second", box_in(phantom, (2, 4), (10, 30), (10, 30)))
    if surface:
        bench.node.CreateClosedSurfaceRepresentation()
    bench.segmentation.GetSegment("first").SetColor(1, 0, 0)
    plane = bench.plane("axial", 8)
    view = slicer_scene.add_view("Red", "Axial", (300, 300))
    view.show(bench.volume_node)
    view.node.RotateToVolumePlane(bench.volume_node)
    view.go_to(plane.pixel_to_ras((30, 30)))
    before = view.pixels()
    asked = view.renders_asked_for
    mask = np.zeros(plane.shape, bool)
    mask[20:60, 20:60] = True
    bench.writer.write("first", plane, mask)
    assert view.renders_asked_for > asked
    after = view.pixels()
    x, y = view.xy_of(plane.pixel_to_ras((40, 40)))
    assert int(after[y, x, 0]) > int(before[y, x, 0]) + 30 and after[y, x, 1] < before[y, x, 1]
    outside = view.xy_of(plane.pixel_to_ras((70, 70)))
    assert np.array_equal(after[outside[1], outside[0]], before[outside[1], outside[0]])
    bench.writer.write("first", plane, None)
    assert np.array_equal(view.pixels(), before)
    bench.writer.write("first", plane, mask)  # into memory that is there already
    assert np.array_equal(view.pixels(), after)


def box_in(volume: Volume, *ranges) -> np.ndarray:
    voxels = np.zeros(volume.shape, bool)
    voxels[tuple(slice(a, b) for a, b in ranges)] = True
    return voxels


def views_to_try(view, volume_node):
    """Turns the view in every way a user may have it; yields what it shows."""
    for orientation in ("Axial", "Coronal", "Sagittal"):
        view.node.SetOrientation(orientation)
        yield f"{orientation} of the patient"
        view.node.RotateToVolumePlane(volume_node)
        yield f"{orientation} of the volume"
    centre = view.ras_of((view.size[0] / 2, view.size[1] / 2))
    angle = np.radians(20)
    view.node.SetOrientation("Axial")
    view.turn((-np.cos(angle), 0, np.sin(angle)), (0, -1, 0), centre)
    yield "rotated by 20°"


def clicks_land_where_they_were_made(slicer_scene, volume_node) -> None:
    volume = volume_from_node(volume_node)
    node = slicer_scene.add_segmentation(volume_node, ("first",))
    node.GetSegmentation().GetSegment("first").SetColor(1, 0, 0)
    node.GetDisplayNode().SetVisibility2DOutline(False)
    display = volume_node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(float(volume.array.min()), 2 * float(volume.array.max()))  # darker than half
    writer = SegmentWriter(node, volume_node, volume)
    view = slicer_scene.add_view("Red", "Axial", (300, 300))
    view.show(volume_node)
    middle = volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) * (0.5, 0.52, 0.48))
    seen = []
    for showing in views_to_try(view, volume_node):
        view.logic.FitSliceToAll()
        view.go_to(middle)
        settle_view(view.node, volume)
        seen.append(showing)
        before = view.pixels().astype(int)
        xy = view.xy_of(middle)
        ras = ras_at(view.node, xy)
        plane = plane_of_view(view.node, volume, ras)
        pixel = plane.ras_to_pixel(ras)
        rows, columns = np.indices(plane.shape)
        mask = np.hypot(columns - pixel[0], rows - pixel[1]) * plane.pixel_size < 12
        writer.write("first", plane, mask, points=[pixel])
        after = view.pixels().astype(int)
        i, j, k = np.floor(volume.ras_to_ijk(ras) + 0.5 + 1e-6).astype(int)
        assert segment_voxels(node, "first", volume)[k, j, i], showing
        redder = (after - before)[..., 0] - (after - before)[..., 1] > 20
        assert redder[xy[1], xy[0]], showing
        shown = np.argwhere(redder)[:, ::-1]
        distance = np.linalg.norm([ras_at(view.node, each) - ras for each in shown], axis=1)
        assert distance.max() < 12 + 2 * volume.spacing.max(), showing
        assert len(shown) * pixel_area(view) == pytest.approx(np.pi * 12**2, rel=0.25), showing
        writer.write("first", plane, None)
    assert len(seen) == 7


def pixel_area(view) -> float:
    """mm² of a pixel of the view."""
    corner, right, up = (view.ras_of(xy) for xy in ((0, 0), (1, 0), (0, 1)))
    return float(np.linalg.norm(right - corner) * np.linalg.norm(up - corner))


def test_a_mask_is_seen_where_the_view_was_clicked_in_every_view(slicer_scene, phantom):
    clicks_land_where_they_were_made(slicer_scene, slicer_scene.add_volume(phantom))


def test_a_mask_is_seen_where_the_view_was_clicked_on_a_transformed_volume(slicer_scene, phantom):
    matrix = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -9], [0, 0, 1, 12], [0, 0, 0, 1.0]])
    parent = slicer_scene.add_transform(matrix)
    clicks_land_where_they_were_made(slicer_scene, slicer_scene.add_volume(phantom, parent=parent))


def test_a_mask_is_seen_where_the_view_was_clicked_on_a_real_oblique_series(slicer_scene, real_images):
    import SimpleITK as sitk
    import vtk

    names = vtk.vtkStringArray()
    for file in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(real_images / "brain-mr-oblique-dicom" / "flair")):
        names.InsertNextValue(file)
    node = slicer_scene.logics["Volumes"].AddArchetypeVolume(names.GetValue(0), "flair", 0, names)
    clicks_land_where_they_were_made(slicer_scene, node)


def test_ownership_holds_after_the_segmentation_was_saved_and_read(slicer_scene, tmp_path):
    """Through a file, as with the scene: labelmaps come back cropped and rearranged."""
    bench = drawn_bench(slicer_scene)
    bench.segmentation.RemoveSegment("apart")  # overlapping segments take a fourth dimension in the file
    before = bench.all()
    plane, other = bench.plane("axial"), bench.plane("sagittal")
    bench.writer.write("first", plane, random_mask(plane.shape, 1))
    bench.writer.write("second", other, random_mask(other.shape, 2))
    shown, stored = bench.all(), json.loads(json.dumps(bench.writer.to_dict()))
    storage = slicer_scene.add("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "saved.seg.nrrd"))
    assert storage.WriteData(bench.node)
    again = slicer_scene.add("vtkMRMLSegmentationNode", "again")
    again.CreateDefaultDisplayNodes()
    assert storage.ReadData(again)
    assert same({name: segment_voxels(again, name, bench.volume) for name in shown}, shown)
    writer = SegmentWriter(again, bench.volume_node, bench.volume)
    assert writer.from_dict(stored)
    for mask in writer.masks():
        assert writer.remove(mask.segment_id, mask.plane_key)
    assert same({name: segment_voxels(again, name, bench.volume) for name in before}, before)
    assert not writer.remove("first", plane.key)
