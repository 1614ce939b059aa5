"""Segments out of the scene: on oblique and transformed volumes, read back by independent readers."""

from __future__ import annotations

import time

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from mrml.scenes import oriented_image_of, tilted_volume

slicer = pytest.importorskip("slicer")

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.images import read_volume  # noqa: E402
from SAMFineTuneLib.images.phantom import body_phantom, write_dicom_series  # noqa: E402
from SAMFineTuneLib.images.volume import Volume  # noqa: E402
from SAMFineTuneLib.mrml.segment_export import (  # noqa: E402
    export_steps,
    finished,
    labelmap_node_steps,
    labelmap_steps,
)
from SAMFineTuneLib.mrml.segments.labelmaps import is_empty  # noqa: E402


@pytest.fixture
def volume():
    return tilted_volume((9, 14, 12))


@pytest.fixture
def masks(volume):
    """What the segments "first" and "second" are to hold, bool [k, j, i]."""
    first, second = np.zeros(volume.shape, bool), np.zeros(volume.shape, bool)
    first[2:5, 3:8, 1:6] = True
    second[5:8, 6:12, 4:11] = True
    return {"first": first, "second": second}


def rotation(degrees, shift):
    angle = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = shift
    return matrix


@pytest.fixture(params=["plain", "together below a transform", "the volume alone", "the segmentation alone"])
def scene_nodes(request, slicer_scene, volume, masks):
    """(segmentation node, volume node): segments where the masks are in the world, whoever is below a transform."""
    transform = slicer_scene.add_transform(rotation(30, (12.0, -7.0, 3.0)))
    parents = {
        "plain": (None, None),
        "together below a transform": (transform, transform),
        "the volume alone": (None, transform),
        "the segmentation alone": (transform, None),
    }[request.param]
    volume_node = slicer_scene.add_volume(volume, parent=parents[1])
    segmentation_node = slicer_scene.add_segmentation(volume_node)
    segmentation_node.SetAndObserveTransformNodeID(parents[0].GetID() if parents[0] else None)
    to_world = rotation(30, (12.0, -7.0, 3.0))
    affine = (to_world if parents[1] else np.eye(4)) @ volume.affine
    if parents[0]:
        affine = np.linalg.inv(to_world) @ affine
    for name, mask in masks.items():
        image = oriented_image_of(mask, affine)
        slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, segmentation_node, name)
    return segmentation_node, volume_node


def wanted(masks):
    return masks["first"] + 2 * masks["second"].astype(np.uint8)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".seg.nrrd"])
def test_files_lie_on_the_volumes_own_grid(scene_nodes, volume, masks, tmp_path, ending):
    path = tmp_path / f"labels{ending}"
    assert finished(export_steps(path, *scene_nodes))() == ()
    if "nii" in ending:
        image = nibabel.load(path)
        array, affine = np.asarray(image.dataobj).T, image.affine
    else:
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        directions = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = directions, image.GetOrigin()
        affine = np.diag([-1, -1, 1, 1]) @ affine
    assert np.allclose(affine, volume.affine, atol=1e-3)
    assert np.array_equal(array, wanted(masks))


def test_a_seg_nrrd_says_names_and_colours(scene_nodes, tmp_path):
    scene_nodes[0].GetSegmentation().GetSegment("first").SetName("Leber")
    scene_nodes[0].GetSegmentation().GetSegment("first").SetColor(0.25, 0.5, 0.75)
    finished(export_steps(tmp_path / "x.seg.nrrd", *scene_nodes))()
    image = sitk.ReadImage(str(tmp_path / "x.seg.nrrd"))
    assert image.GetMetaData("Segment0_Name") == "Leber"
    assert np.allclose(list(map(float, image.GetMetaData("Segment0_Color").split())), (0.25, 0.5, 0.75))


def test_a_labelmap_node_lies_where_the_volume_is(scene_nodes, masks):
    segmentation_node, volume_node = scene_nodes
    node, notes = finished(labelmap_node_steps(segmentation_node, volume_node, ["second"]))
    assert notes == ()
    assert node.GetName() == f"{segmentation_node.GetName()}-label"
    assert node.GetParentTransformNode() is volume_node.GetParentTransformNode()
    assert [node.GetIJKToRASDirectionMatrix, node.GetOrigin()][1] == pytest.approx(volume_node.GetOrigin())
    from vtk.util.numpy_support import vtk_to_numpy

    array = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars()).reshape(masks["first"].shape)
    assert np.array_equal(array, masks["second"])
    assert node.GetDisplayNode().GetColorNode().GetColorName(1) == "second"


def test_what_overlaps_or_is_empty_is_said(slicer_scene, volume, masks):
    volume_node = slicer_scene.add_volume(volume)
    segmentation_node = slicer_scene.add_segmentation(volume_node, ("first", "second", "third"))
    for name in ("first", "second"):
        image = oriented_image_of(masks["first"], volume.affine)
        slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, segmentation_node, name)
    segmentation_node.GetSegmentation().SeparateSegmentLabelmap("second")
    image = oriented_image_of(masks["first"], volume.affine)
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, segmentation_node, "first")
    found = finished(labelmap_steps(segmentation_node, volume_node))
    assert np.array_equal(found.labels, masks["first"])
    assert any(f"{masks['first'].sum()} voxels belong to several" in note for note in found.notes)
    assert any("“third” is empty" in note for note in found.notes)
    first, third = (segmentation_node.GetSegmentation().GetSegment(name) for name in ("first", "third"))
    assert is_empty(third) and not is_empty(first)


def test_what_another_volumes_grid_cannot_hold_is_said_with_numbers(slicer_scene, volume, masks):
    """Segments of one volume, exported onto a smaller one, and onto one of thicker slices."""
    segmentation_node = slicer_scene.add_segmentation(slicer_scene.add_volume(volume))
    for name, mask in masks.items():
        image = oriented_image_of(mask, volume.affine)
        slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, segmentation_node, name)
    smaller = slicer_scene.add_volume(type(volume)(volume.array[:6].copy(), volume.affine), "smaller")
    found = finished(labelmap_steps(segmentation_node, smaller))
    left_out, all_of_it = masks["second"][6:].sum(), masks["second"].sum()
    assert found.notes == (
        f"Segment “second” reaches beyond the volume: {left_out} of its {all_of_it} voxels are left out.",
    )
    assert np.array_equal(found.labels, wanted(masks)[:6])
    thicker = slicer_scene.add_volume(type(volume)(volume.array[::4].copy(), volume.affine @ np.diag([1, 1, 4, 1])))
    found = finished(labelmap_steps(segmentation_node, thicker, ["first"]))
    sizes = [masks["first"].sum(), 4 * np.count_nonzero(found.labels)]
    before, after = (size * abs(np.linalg.det(volume.affine[:3, :3])) / 1000 for size in sizes)
    assert found.notes == (
        "Segment “first” has another voxel grid than the volume and was resampled: "
        f"{before:.2f} mL became {after:.2f} mL.",
    )


@pytest.mark.parametrize("slices", ["as the series", "from the other end"])
def test_dicom_seg_refers_to_the_series(slicer_scene, tmp_path, slices):
    """Slicer may order slices from the other end than we do: voxels lie on the same places all the same."""
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    phantom = body_phantom(seed=1, shape=(8, 40, 32), spacing=(2.5, 2.2, 5.0))[0]
    write_dicom_series(phantom, tmp_path / "series")
    series = read_volume(tmp_path / "series")
    mask = np.zeros(series.shape, bool)
    mask[2:5, 10:20, 8:19] = True
    if slices == "from the other end":
        flip = np.diag([1.0, 1, -1, 1])
        flip[2, 3] = series.shape[0] - 1
        node_volume = type(series)(series.array[::-1].copy(), series.affine @ flip)
        shown = mask[::-1].copy()
    else:
        node_volume, shown = series, mask
    transform = slicer_scene.add_transform(rotation(20, (5, 0, 0)))
    volume_node = slicer_scene.add_volume(node_volume, parent=transform)
    segmentation_node = slicer_scene.add_segmentation(volume_node, ("first",))
    image = oriented_image_of(shown, node_volume.affine)
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, segmentation_node, "first")
    files = sorted((tmp_path / "series").iterdir())
    finished(export_steps(tmp_path / "out.dcm", segmentation_node, volume_node, dicom_files=files[::-1]))()
    seg = pydicom.dcmread(tmp_path / "out.dcm")
    positions = {}
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        positions[tuple(np.round(map_floats(frame.PlanePositionSequence[0].ImagePositionPatient), 3))] = pixels
    for path in files:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        lps = np.array(map_floats(header.ImagePositionPatient))
        k = int(np.rint(series.ras_to_ijk(lps * (-1, -1, 1))[2]))
        pixels = positions.get(tuple(np.round(lps, 3)))
        assert (pixels is not None) == bool(mask[k].any())
        assert pixels is None or np.array_equal(pixels, mask[k])


def map_floats(values):
    return [float(value) for value in values]


def test_what_cannot_be_exported_is_said(slicer_scene, volume, tmp_path):
    volume_node = slicer_scene.add_volume(volume)
    segmentation_node = slicer_scene.add_segmentation(volume_node)
    empty = slicer_scene.add_segmentation(volume_node, ())
    phantom = body_phantom(seed=1, shape=(8, 40, 32), spacing=(2.5, 2.2, 5.0))[0]
    write_dicom_series(phantom, tmp_path / "series")
    series = sorted((tmp_path / "series").iterdir())
    for arguments, match in (
        ((tmp_path / "x.nii.gz", None, volume_node), "no segmentation"),
        ((tmp_path / "x.nii.gz", segmentation_node, None), "no volume"),
        ((tmp_path / "x.nii.gz", empty, volume_node), "no segment"),
        ((tmp_path / "x.nii.gz", segmentation_node, volume_node, ["gone"]), "no longer exist"),
        ((tmp_path / "x.png", segmentation_node, volume_node), "ending"),
        ((tmp_path / "x.dcm", segmentation_node, volume_node), "not from one"),
        ((tmp_path / "x.dcm", segmentation_node, volume_node, None, series), "resampled or cropped"),
        ((tmp_path / "x.dcm", segmentation_node, volume_node, None, [tmp_path / "no.dcm"]), "no longer where"),
    ):
        with pytest.raises(UserError, match=match):
            finished(export_steps(*arguments))()


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "<b>x</b> “é” 🙂"])
def test_segments_of_any_name_are_exported(slicer_scene, volume, masks, tmp_path, name):
    volume_node = slicer_scene.add_volume(volume)
    segmentation_node = slicer_scene.add_segmentation(volume_node, ("first",))
    segmentation_node.GetSegmentation().GetSegment("first").SetName(name)
    for ending in (".nii.gz", ".seg.nrrd"):
        path = tmp_path / f"segments{ending}"
        finished(export_steps(path, segmentation_node, volume_node))()
        assert path.exists()


def test_a_large_segmentation_is_exported_in_short_steps_and_a_segment_removed_meanwhile_is_said(slicer_scene):
    volume = Volume(np.zeros((80, 1024, 1024), np.uint8), np.diag([-0.5, -0.5, 1.0, 1.0]))
    node = slicer_scene.add_volume(volume)
    segmentation = slicer_scene.add_segmentation(node, ())
    segment_id = segmentation.AddSegmentFromBinaryLabelmapRepresentation(
        oriented_image_of(np.ones(volume.shape, np.uint8), volume.affine), "all")  # fmt: skip
    steps, longest, ended = labelmap_steps(segmentation, node), 0.0, False
    while not ended:
        begun = time.thread_time()
        ended = next(steps, None) is None
        longest = max(longest, time.thread_time() - begun)
    assert longest < 0.05
    steps = labelmap_steps(segmentation, node)
    while next(steps) < 0.5:
        pass
    segmentation.GetSegmentation().RemoveSegment(segment_id)
    with pytest.raises(UserError, match="removed during the export"):
        finished(steps)
