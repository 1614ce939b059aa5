"""Volume nodes as volumes, compared with SimpleITK's reading of the same files and with Slicer's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mrml.conftest import tilted_volume
from mrml.scenes import array_of, image_of, matrix_of

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.volume_nodes import displayed_window, volume_from_node

LPS = np.array([-1.0, -1.0, 1.0])


def rotation(a: float, b: float, c: float) -> np.ndarray:
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


angles = st.integers(-314, 314).map(lambda n: n / 100)
lengths = st.integers(3, 60).map(lambda n: n / 10)


@st.composite
def affines(draw):
    """Any right- or left-handed, turned, permuted, anisotropic voxel grid."""
    affine = np.eye(4)
    flips = np.diag(draw(st.tuples(*[st.sampled_from((-1, 1))] * 3)))
    order = np.eye(3)[list(draw(st.permutations((0, 1, 2))))]
    turned = rotation(*draw(st.tuples(angles, angles, angles)))
    affine[:3, :3] = turned @ flips @ order * draw(st.tuples(lengths, lengths, lengths))
    affine[:3, 3] = draw(st.tuples(*[st.integers(-3000, 3000)] * 3))
    affine[:3, 3] /= 10
    return affine


@settings(max_examples=60, deadline=None)
@given(affines(), st.lists(affines(), max_size=2), st.integers(0, 99))
def test_any_grid_below_any_linear_transforms_is_where_slicer_shows_it(lasting_scene, affine, transforms, seed):
    array = np.random.default_rng(seed).integers(-1000, 2000, (3, 4, 5)).astype(np.int16)
    parent = None
    for matrix in transforms:
        parent = lasting_scene.add_transform(matrix, parent=parent)
    node = lasting_scene.add_volume(Volume(array, affine), parent=parent)
    volume = volume_from_node(node)
    corners = np.array([[0, 0, 0], [4, 0, 0], [0, 3, 0], [0, 0, 2], [1, 2, 1]])
    for i, j, k in corners:
        local = matrix_of(affine).MultiplyPoint((i, j, k, 1))[:3]
        world = [0.0, 0.0, 0.0]
        node.TransformPointToWorld(local, world)
        assert np.allclose(volume.ijk_to_ras((i, j, k)), world, atol=1e-4)
        assert volume.array[k, j, i] == node.GetImageData().GetScalarComponentAsDouble(int(i), int(j), int(k), 0)
    lasting_scene.scene.Clear(True)


def test_the_point_is_where_slicers_rule_for_transformed_volumes_puts_it(slicer_scene, a_tilted_volume):
    import slicer
    import vtk

    matrix = np.eye(4)
    matrix[:3, :3] = rotation(0.4, -0.2, 0.7)
    matrix[:3, 3] = 8, -20, 31
    node = slicer_scene.add_volume(a_tilted_volume, parent=slicer_scene.add_transform(matrix))
    volume = volume_from_node(node)
    to_volume = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, node.GetParentTransformNode(), to_volume)
    ras_to_ijk = vtk.vtkMatrix4x4()
    node.GetRASToIJKMatrix(ras_to_ijk)
    for ras in np.random.default_rng(3).uniform(-50, 50, (20, 3)):
        expected = ras_to_ijk.MultiplyPoint((*to_volume.TransformPoint(ras), 1))[:3]
        assert np.allclose(volume.ras_to_ijk(ras), expected, atol=1e-6)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]
)
def test_voxels_of_any_type_are_seen_without_a_copy(slicer_scene, dtype):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    node = slicer_scene.add_volume(Volume(array, np.eye(4)))
    volume = volume_from_node(node)
    assert volume.array.dtype == dtype and np.array_equal(volume.array, array)
    node.GetImageData().GetPointData().GetScalars().SetTuple1(7, 99)
    assert volume.array[0, 1, 2] == 99
    with pytest.raises(ValueError):
        volume.array[0, 0, 0] = 1


def test_voxels_outlive_their_node(slicer_scene, a_tilted_volume):
    node = slicer_scene.add_volume(a_tilted_volume)
    volume = volume_from_node(node)
    node.SetAndObserveImageData(None)
    slicer_scene.scene.RemoveNode(node)
    assert np.array_equal(volume.array, a_tilted_volume.array)


def test_indices_may_begin_elsewhere(slicer_scene, a_tilted_volume):
    node = slicer_scene.add_volume(a_tilted_volume)
    node.GetImageData().SetExtent(5, 14, -3, 8, 2, 8)
    volume = volume_from_node(node)
    assert np.allclose(volume.ijk_to_ras((0, 0, 0)), a_tilted_volume.ijk_to_ras((5, -3, 2)))


# ---- what is refused


def refused(node) -> str:
    with pytest.raises(UserError) as error:
        volume_from_node(node)
    sentence = str(error.value)
    assert sentence.endswith(".") and sentence.count(". ") == 0
    return sentence


def test_nothing_and_empty_volumes_are_refused(slicer_scene):
    assert "No volume" in refused(None)
    node = slicer_scene.add("vtkMRMLScalarVolumeNode", "empty one")
    assert "“empty one” holds no voxels" in refused(node)
    import vtk

    node.SetAndObserveImageData(vtk.vtkImageData())
    assert "no voxels" in refused(node)


@pytest.mark.parametrize("class_name", ["vtkMRMLVectorVolumeNode", "vtkMRMLScalarVolumeNode"])
def test_several_values_a_voxel_are_refused(slicer_scene, class_name):
    import vtk

    node = slicer_scene.add(class_name, "photo")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    node.SetAndObserveImageData(image)
    assert "“photo” has 3 values a voxel" in refused(node)


def test_sequences_and_other_nodes_are_refused(slicer_scene):
    assert "sequence" in refused(slicer_scene.add("vtkMRMLSequenceNode", "4D"))
    assert "not a scalar volume" in refused(slicer_scene.add("vtkMRMLModelNode", "bone"))


def test_bits_are_numbers_too(slicer_scene):
    import vtk

    node = slicer_scene.add("vtkMRMLScalarVolumeNode", "bits")
    image = vtk.vtkImageData()
    image.SetDimensions(8, 2, 2)
    image.AllocateScalars(vtk.VTK_BIT, 1)
    scalars = image.GetPointData().GetScalars()
    for index in range(32):
        scalars.SetTuple1(index, index % 3 == 0)
    node.SetAndObserveImageData(image)
    assert np.array_equal(volume_from_node(node).array.reshape(-1), np.arange(32) % 3 == 0)


def test_bending_transforms_are_refused_with_their_names(slicer_scene, a_tilted_volume):
    import slicer
    import vtk

    points = vtk.vtkPoints()
    bent = vtk.vtkPoints()
    for corner in np.ndindex(2, 2, 2):
        points.InsertNextPoint(*(np.array(corner) * 50.0))
        bent.InsertNextPoint(*(np.array(corner) * 50.0 + (corner[0] * corner[1] * 9, 0, 0)))
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(bent)
    spline.SetBasisToR()
    transform = slicer_scene.add("vtkMRMLTransformNode", "warp")
    transform.SetAndObserveTransformToParent(spline)
    outer = slicer_scene.add_transform(np.eye(4), "table", parent=transform)
    sentence = refused(slicer_scene.add_volume(a_tilted_volume, "head", parent=outer))
    assert "“head”" in sentence and "non-linear" in sentence and "harden" in sentence
    assert isinstance(transform, slicer.vtkMRMLTransformNode)


# ---- window and modality


def test_the_displayed_window_is_offered(slicer_scene, a_tilted_volume):
    node = slicer_scene.add_volume(a_tilted_volume)
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(-160, 240)
    assert displayed_window(node) == IntensityWindow(-160, 240, "as displayed")
    display.SetWindowLevel(0, 10)
    assert displayed_window(node) is None
    node.RemoveAllDisplayNodeIDs()
    assert displayed_window(node) is None and displayed_window(None) is None


def test_the_modality_is_what_the_dicom_reader_noted(slicer_scene, a_tilted_volume):
    import slicer

    node = slicer_scene.add_volume(a_tilted_volume)
    assert volume_from_node(node).modality == ""
    units = slicer.vtkCodedEntry()
    units.SetValueSchemeMeaning("hnsf'U", "UCUM", "Hounsfield unit")
    node.SetVoxelValueUnits(units)
    assert volume_from_node(node).modality == "CT"
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer_scene.scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", "MR")
    assert volume_from_node(node).modality == "MR"


# ---- real images, read by Slicer's own reader and by SimpleITK


def by_simpleitk(files) -> Volume:
    import SimpleITK as sitk

    image = sitk.ReadImage(files) if len(files) > 1 else sitk.ReadImage(files[0])
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, :3] = LPS[:, None] * directions
    affine[:3, 3] = LPS * image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), affine)


@pytest.mark.parametrize(
    "series", ["brain-mr-oblique-dicom/flair", "brain-mr-oblique-dicom/t1post", "ct-abdomen-dicom/series"]
)
def test_real_series_read_by_slicer_are_where_simpleitk_puts_them(slicer_scene, real_images, series):
    import SimpleITK as sitk
    import vtk

    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(real_images / series))
    expected = by_simpleitk(list(files))
    names = vtk.vtkStringArray()
    for file in files:
        names.InsertNextValue(file)
    node = slicer_scene.logics["Volumes"].AddArchetypeVolume(files[0], "real", 0, names)
    assert node is not None
    volume = volume_from_node(node)
    assert volume.shape == expected.shape
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape[::-1]) - 1)
    # The slices may be stacked from either end: what is at a place in the patient must be the same.
    ijk = np.rint(expected.ras_to_ijk(volume.ijk_to_ras(corners))).astype(int)
    assert np.allclose(expected.ijk_to_ras(ijk), volume.ijk_to_ras(corners), atol=2e-3)
    for here, there in zip(corners, ijk, strict=True):
        assert volume.array[tuple(here[::-1])] == expected.array[tuple(there[::-1])]
    middle = np.array(volume.shape[::-1]) // 2
    there = np.rint(expected.ras_to_ijk(volume.ijk_to_ras(middle))).astype(int)
    assert volume.array[tuple(middle[::-1])] == expected.array[tuple(there[::-1])]


def test_helpers_of_these_tests_agree(a_tilted_volume):
    assert np.allclose(array_of(matrix_of(a_tilted_volume.affine)), a_tilted_volume.affine)
    assert image_of(a_tilted_volume.array).GetDimensions() == a_tilted_volume.shape[::-1]
    assert np.linalg.det(tilted_volume().affine[:3, :3]) < 0  # left-handed, as the tests need it
