"""Label maps on disk: geometry, types, names and colours, all or nothing."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import (
    OUTPUT_ENDINGS,
    SegmentInfo,
    Volume,
    check_output_path,
    read_volume,
    write_labelmap,
)

PLAIN = [".nii.gz", ".nii", ".nrrd", ".mha"]
SEGMENTS = [
    SegmentInfo("liver", 5, (0.8, 0.4, 0.3)),
    SegmentInfo("aorte «A» 大動脈", 52, (1.0, 0.0, 0.25)),
    SegmentInfo("nothing", 7, (0.0, 1.0, 0.0)),
]


def oblique_volume(handedness=1, shape=(6, 9, 8)):
    """Tilted in every direction, anisotropic, right- (1) or left-handed (-1)."""
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    axes[:, 2] *= handedness * np.sign(np.linalg.det(axes))
    affine = np.eye(4)
    affine[:3, :3] = axes * (0.7, 1.1, 4)
    affine[:3, 3] = (-90, 40, 12)
    return Volume(np.zeros(shape, np.int16), affine, modality="CT")


def labels_of(volume):
    labels = np.zeros(volume.shape, np.int32)
    labels[1:3, 2:5, 1:7] = 5
    labels[4, 8, 0] = 52
    return labels


@pytest.mark.parametrize("handedness", [1, -1])
@pytest.mark.parametrize("ending", [*PLAIN, ".seg.nrrd"])
def test_voxels_and_affine_are_the_volumes(tmp_path, ending, handedness):
    volume = oblique_volume(handedness)
    path = tmp_path / "new folder" / f"my labels ü{ending}"
    assert write_labelmap(path, labels_of(volume), volume, SEGMENTS) == ()
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), labels_of(volume))
    for voxel in ((0, 0, 0), (7, 8, 5), (7, 0, 0)):
        x, y, z = image.TransformIndexToPhysicalPoint(voxel)
        assert np.allclose(volume.ijk_to_ras(voxel), (-x, -y, z), atol=1e-4)
    again = read_volume(path)
    assert again.array.dtype == np.uint8
    assert np.allclose(again.affine, volume.affine, atol=1e-4)
    if ".nii" in ending:
        loaded = nibabel.load(path)
        assert np.allclose(loaded.affine, volume.affine, atol=1e-4)
        assert np.allclose(loaded.header.get_qform(), volume.affine, atol=1e-4)
        assert np.array_equal(np.asarray(loaded.dataobj).T, labels_of(volume))
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("value", "dtype"), [(255, "uint8"), (256, "uint16"), (65535, "uint16")])
@pytest.mark.parametrize("ending", [*PLAIN, ".seg.nrrd"])
def test_the_smallest_type_that_holds_the_values_is_used(tmp_path, ending, value, dtype):
    volume = oblique_volume()
    labels = np.zeros(volume.shape, np.int64)
    labels[0, 1, 2] = value
    path = tmp_path / f"a{ending}"
    write_labelmap(path, labels, volume, [SegmentInfo("x", value, (1, 1, 1))])
    again = read_volume(path)
    assert again.array.dtype == dtype and again.array[0, 1, 2] == value and np.count_nonzero(again.array) == 1


def test_a_boolean_mask_is_a_label_map_of_ones(tmp_path):
    volume = oblique_volume()
    write_labelmap(tmp_path / "a.nrrd", labels_of(volume) > 0, volume)
    assert np.array_equal(read_volume(tmp_path / "a.nrrd").array, (labels_of(volume) > 0).astype(np.uint8))


def test_seg_nrrd_says_names_colours_values_and_extents(tmp_path):
    volume = oblique_volume()
    write_labelmap(tmp_path / "a.seg.nrrd", labels_of(volume), volume, SEGMENTS)
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert fields["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert fields["Segment0_Name"] == "liver" and fields["Segment0_LabelValue"] == "5"
    assert fields["Segment0_Extent"] == "1 6 2 4 1 2"
    assert [float(part) for part in fields["Segment1_Color"].split()] == [1, 0, 0.25]
    assert fields["Segment1_Extent"] == "0 0 8 8 4 4"
    assert len({fields[f"Segment{n}_ID"] for n in range(3)}) == 3


def test_an_existing_file_is_replaced_whole_or_left_alone(tmp_path, monkeypatch):
    volume, path = oblique_volume(), tmp_path / "a.nii.gz"
    write_labelmap(path, labels_of(volume), volume)
    before = path.read_bytes()

    def broken(image, name, *args, **kwargs):
        Path(name).write_bytes(b"half a file")
        raise RuntimeError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(sitk, "WriteImage", broken)
        with pytest.raises(UserError, match="cannot be written"):
            write_labelmap(path, labels_of(volume) * 2, volume)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.nii.gz"]
    write_labelmap(path, labels_of(volume) * 2, volume)
    assert read_volume(path).array.max() == 104


@pytest.mark.parametrize("name", ["a", "a.png", "a.nrrd.txt", "a.nhdr", "a.gz", ".nii.gz", "a.dicom"])
def test_unknown_endings_are_refused_with_the_list_of_known_ones(tmp_path, name):
    volume = oblique_volume()
    with pytest.raises(UserError) as refusal:
        write_labelmap(tmp_path / name, labels_of(volume), volume)
    assert all(ending in str(refusal.value) for ending in OUTPUT_ENDINGS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["A.NII.GZ", "a.b.seg.nrrd", "a b.dcm", "a.mha"])
def test_known_endings_are_accepted_before_any_work(tmp_path, name):
    check_output_path(tmp_path / name)


def test_a_folder_is_no_output(tmp_path):
    (tmp_path / "x.nrrd").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_output_path(tmp_path / "x.nrrd")


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    volume = oblique_volume()
    with pytest.raises(UserError, match="cannot be made"):
        write_labelmap(tmp_path / "file" / "a.nrrd", labels_of(volume), volume)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.zeros((6, 9, 7), np.uint8), "voxels"),
        (np.zeros((6, 9, 8), np.float32), "whole numbers"),
        (np.full((6, 9, 8), -1), "from -1"),
        (np.full((6, 9, 8), 70000), "70000"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(tmp_path, labels, match):
    with pytest.raises(UserError, match=match):
        write_labelmap(tmp_path / "a.nrrd", labels, oblique_volume())


@pytest.mark.parametrize(
    ("segments", "match"),
    [
        ([SegmentInfo("a", 1, (1, 1, 1)), SegmentInfo("b", 1, (1, 1, 1))], "both have value 1"),
        ([SegmentInfo(" ", 1, (1, 1, 1))], "needs a name"),
        ([SegmentInfo("a\ud800", 1, (1, 1, 1))], "a character that no file can hold"),
        ([SegmentInfo("a\x00", 1, (1, 1, 1))], "a character that no file can hold"),
        ([SegmentInfo("a", 0, (1, 1, 1))], "value 0"),
        ([SegmentInfo("a", 65536, (1, 1, 1))], "65536"),
        ([SegmentInfo("a", 1, (1, 255, 1))], "colour"),
    ],
)
def test_segments_that_make_no_sense_are_refused(tmp_path, segments, match):
    volume = oblique_volume()
    with pytest.raises(UserError, match=match):
        write_labelmap(tmp_path / "a.nrrd", np.zeros(volume.shape, np.uint8), volume, segments)


def test_a_segmentation_needs_a_name_for_every_value(tmp_path):
    volume = oblique_volume()
    with pytest.raises(UserError, match="label value 52"):
        write_labelmap(tmp_path / "a.seg.nrrd", labels_of(volume), volume, SEGMENTS[:1])


def test_slicer_loads_the_segmentation_with_names_colours_and_voxels_in_place(tmp_path):
    slicer = pytest.importorskip("slicer")
    from vtk.util.numpy_support import vtk_to_numpy

    volume, labels = oblique_volume(), labels_of(oblique_volume())
    path = tmp_path / "a.seg.nrrd"
    write_labelmap(path, labels, volume, SEGMENTS)
    scene = slicer.vtkMRMLScene()
    node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
    storage = scene.AddNode(slicer.vtkMRMLSegmentationStorageNode())
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == len(SEGMENTS)
    for n, info in enumerate(SEGMENTS):
        segment = segmentation.GetNthSegment(n)
        assert segment.GetName() == info.name
        assert segment.GetLabelValue() == info.value
        assert np.allclose(segment.GetColor(), info.color, atol=1e-3)
        image = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(n), image)
        if not (labels == info.value).any():
            assert image.IsEmpty() or image.GetScalarRange()[1] == 0
            continue
        dimensions = image.GetDimensions()
        array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(dimensions[::-1])
        k, j, i = np.nonzero(array)
        extent = image.GetExtent()
        matrix = (
            slicer.vtkMatrix4x4() if hasattr(slicer, "vtkMatrix4x4") else __import__("vtk").vtkMatrix4x4()
        )
        image.GetImageToWorldMatrix(matrix)
        to_world = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
        inside = np.column_stack((i + extent[0], j + extent[2], k + extent[4], np.ones_like(i)))
        in_ras = (inside @ to_world.T)[:, :3]
        found = np.rint(volume.ras_to_ijk(in_ras)).astype(int)
        assert np.allclose(volume.ras_to_ijk(in_ras), found, atol=1e-3)
        expected = np.argwhere(labels == info.value)[:, ::-1]
        assert {tuple(voxel) for voxel in found} == {tuple(voxel) for voxel in expected}
