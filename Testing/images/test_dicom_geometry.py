"""Where DICOM slices lie: any orientation, any order, uneven, missing, repeated, tilted."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_samples import AXIAL, decimals, image_dataset, save, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import NuclearMedicineImageStorage

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import list_series, read_volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def stack(count, rows=5, columns=4):
    """Slices that all differ, so that a wrong order is seen."""
    return np.arange(count * rows * columns, dtype=np.int16).reshape(count, rows, columns)


def independent_reading(folder):
    """(array, RAS affine) by SimpleITK's own series reader."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), LPS @ affine


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spacing=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
    step=st.floats(0.3, 9),
    count=st.integers(2, 6),
)
def test_any_orientation_is_read_like_simpleitk_does_and_as_written(seed, spacing, step, count):
    row, column, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0].T
    with tempfile.TemporaryDirectory() as folder:
        write_series(
            Path(folder), stack(count), orientation=(*row, *column), pixel_spacing=spacing, step=step
        )
        volume = read_volume(folder)
        array, affine = independent_reading(folder)
    assert np.array_equal(volume.array, stack(count))
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.affine, affine, atol=1e-5)
    expected = np.eye(4)
    expected[:3, :3] = np.column_stack((row * spacing[1], column * spacing[0], np.cross(row, column) * step))
    expected[:3, 3] = (-20, 10, 30)
    assert np.allclose(volume.affine, LPS @ expected, atol=1e-5)
    assert volume.warnings == ()


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1)])
def test_flipped_rows_and_columns_keep_every_voxel_in_its_place(tmp_path, orientation):
    stored = stack(3)
    write_series(tmp_path, stored, orientation=orientation)
    volume = read_volume(tmp_path)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    for k, j, i in ((0, 0, 0), (2, 4, 3), (1, 0, 3)):
        place = np.array([-20, 10, 30]) + row * i * 0.7 + column * j * 0.8 + normal * k * 2.5
        at = np.rint(volume.ras_to_ijk(LPS[:3, :3] @ place)).astype(int)
        assert np.allclose(volume.ras_to_ijk(LPS[:3, :3] @ place), at, atol=1e-5)
        assert volume.array[tuple(at[::-1])] == stored[k, j, i]


def test_missing_slices_are_named_and_interpolated_so_that_the_others_stay_in_place(tmp_path):
    stored = stack(7) + 100
    heights = [0, 2.5, 5, 12.5, 15, 17.5, 20]  # two slices missing after the third
    write_series(tmp_path, stored, positions=[(0, 0, z) for z in heights])
    volume = read_volume(tmp_path)
    assert volume.shape == (9, 5, 4)
    assert np.allclose(volume.spacing, (0.7, 0.8, 2.5))
    for z, one in zip(heights, stored, strict=True):
        assert np.array_equal(volume.array[round(z / 2.5)], one)
    below, above = stored[2].astype(float), stored[3]
    assert np.array_equal(volume.array[3:5], np.rint([below + (above - below) * part / 3 for part in (1, 2)]))
    assert volume.source.slices[3:5] == (None, None) and volume.interpolated == {3, 4}
    (warning,) = volume.warnings
    assert "2 slices are missing" in warning and "between S 5.0 mm and S 12.5 mm" in warning


def test_a_change_of_distance_is_bridged_like_missing_slices(tmp_path):
    heights = [-4, -2, 0, 2, 6, 10, 14, 18]
    write_series(tmp_path, stack(8), positions=[(0, 0, z) for z in heights])
    volume = read_volume(tmp_path)
    assert volume.shape[0] == 12 and volume.interpolated == {4, 6, 8, 10}
    assert "at 4 places from S 2.0 mm to S 18.0 mm" in volume.warnings[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.3, 7), min_size=3, max_size=9), st.integers(0, 2**32 - 1))
def test_values_are_where_they_lie_in_the_patient_whatever_the_distances(gaps, seed):
    """Voxels hold their own height: interpolated linearly, it must come out at every slice, in any orientation."""
    row, column, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0].T
    normal = np.cross(row, column)
    heights = np.concatenate([[0], np.cumsum(gaps)])
    stored = np.broadcast_to(np.rint(heights * 100).astype(np.int16)[:, None, None], (len(heights), 3, 4))
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder), stored, positions=[z * normal for z in heights], orientation=(*row, *column))
        volume = read_volume(folder)
    at = [(LPS[:3, :3] @ volume.ijk_to_ras((0, 0, k))) @ normal for k in range(volume.shape[0])]
    slack = 1 + 100 * 0.1 * np.mean(gaps)  # slices up to a tenth of their distance off are not touched
    expected = np.clip(np.array(at) * 100, 0, stored.max())
    assert np.abs(volume.array[:, 0, 0] - expected).max() <= slack
    assert abs(at[-1] - heights[-1]) <= 0.51 * volume.spacing[2]


def test_uneven_slices_are_interpolated_onto_even_ones_and_said(tmp_path):
    heights = [0, 2, 4, 6, 9, 12]
    write_series(tmp_path, stack(6), positions=[(0, 0, z) for z in heights])
    volume = read_volume(tmp_path)
    assert np.allclose(volume.spacing[2], 2) and volume.shape[0] == 7
    assert np.array_equal(volume.array[:4], stack(6)[:4]) and np.array_equal(volume.array[6], stack(6)[5])
    assert volume.source.resampled and volume.interpolated == frozenset()
    (warning,) = volume.warnings
    assert "2 to 3 mm" in warning and "interpolated onto slices every 2 mm" in warning


def test_small_unevenness_is_said_and_leaves_slices_as_they_are(tmp_path):
    heights = [0, 3, 6.25, 9, 12]
    write_series(tmp_path, stack(5), positions=[(0, 0, z) for z in heights])
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, stack(5)) and not volume.source.resampled
    assert "off by up to 0.25 mm" in volume.warnings[0]


def test_distances_that_drift_are_not_called_even(tmp_path):
    heights = np.cumsum([0] + [2.5] * 20 + [2.6] * 20)
    write_series(tmp_path, stack(41), positions=[(0, 0, z) for z in heights])
    volume = read_volume(tmp_path)
    at = volume.ijk_to_ras(np.array([[0, 0, k] for k in range(volume.shape[0])]))[:, 2]
    assert abs(at[-1] - heights[-1]) < 1.3
    assert np.abs(np.interp(at, heights, stack(41)[:, 0, 0]) - volume.array[:, 0, 0]).max() < 5
    assert "unevenly spaced" in volume.warnings[0]


def test_rounded_positions_are_not_called_uneven(tmp_path):
    heights = [0, 3.33, 6.67, 10, 13.33, 16.67]
    write_series(tmp_path, stack(6), positions=[(0, 0, z) for z in heights])
    assert read_volume(tmp_path).warnings == ()


def test_parts_far_apart_are_volumes_of_their_own(tmp_path):
    write_series(tmp_path, stack(4), positions=[(0, 0, z) for z in (0, 2, 4, 300)])
    first, second = list_series(tmp_path)
    assert (first.size[2], second.size[2]) == (3, 1)
    assert "S 0.0 mm to S 4.0 mm" in first.description and "S 300.0 mm" in second.description
    assert np.array_equal(read_volume(tmp_path, "1").array, stack(4)[:3])


def test_images_that_nothing_tells_apart_are_refused_with_the_numbers(tmp_path):
    heights = (0, 0, 2, 2, 4, 4)
    write_series(tmp_path, stack(6), positions=[(0, 0, z) for z in heights], InstanceNumber=None)
    with pytest.raises(UserError, match="6 images at only 3 positions.*S 0.0 mm"):
        read_volume(tmp_path)


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path):
    write_series(tmp_path, stack(5), positions=[(0, 3 * k * np.tan(np.radians(15)), 3 * k) for k in range(5)])
    with pytest.raises(UserError, match="tilted by 15°"):
        read_volume(tmp_path)
    assert list_series(tmp_path)[0].size == (4, 5, 5)


def test_orientation_that_is_not_perpendicular_is_refused(tmp_path):
    write_series(tmp_path, stack(2), orientation=(1, 0, 0, 0.6, 0.8, 0), step=1)
    with pytest.raises(UserError, match="perpendicular"):
        read_volume(tmp_path)


def test_rounded_orientation_becomes_exactly_perpendicular(tmp_path):
    write_series(tmp_path, stack(3), orientation=(0.866, 0.5, 0, -0.5, 0.866, 0.001))
    axes = read_volume(tmp_path).affine[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-12)


def test_without_positions_slices_follow_their_numbers_and_every_assumption_is_said(tmp_path):
    write_series(
        tmp_path,
        stack(4),
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        SliceThickness=None,
        InstanceNumber=lambda k: 9 - k,
    )
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, stack(4)[::-1])
    assert np.array_equal(volume.affine, LPS)
    text = " ".join(volume.warnings)
    parts = ("oriented", "where they lie", "order of their numbers", "large a pixel", "thick")
    assert all(part in text for part in parts)


@pytest.mark.parametrize("number", [None, 1])
def test_slices_with_neither_positions_nor_numbers_follow_their_names_and_that_is_said(tmp_path, number):
    write_series(tmp_path, stack(4), ImagePositionPatient=None, InstanceNumber=number, shuffle=False)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, stack(4)) and "order of their names" in volume.warnings[0]


def test_pixel_spacing_of_the_detector_is_used_when_there_is_no_other(tmp_path):
    write_series(tmp_path, stack(1), PixelSpacing=None, ImagerPixelSpacing=["0.2", "0.1"])
    volume = read_volume(tmp_path)
    assert np.allclose(volume.spacing, (0.1, 0.2, 2.5))
    assert any("on the detector" in note for note in volume.warnings)


@pytest.mark.parametrize(
    ("field", "said"),
    [({"PixelAspectRatio": ["2", "1"]}, ["PixelAspectRatio"]), ({"PixelAspectRatio": ["1", "1"]}, []),
     ({"NominalScannedPixelSpacing": ["0.2", "0.2"]}, ["NominalScannedPixelSpacing"]),
     ({"SequenceOfUltrasoundRegions": [Dataset()]}, ["SequenceOfUltrasoundRegions"])],
    ids=str,
)  # fmt: skip
def test_a_pixel_size_that_is_not_used_is_said(tmp_path, field, said):
    write_series(tmp_path, stack(2), PixelSpacing=None, **field)
    volume = read_volume(tmp_path)
    assert np.allclose(volume.spacing[:2], 1), "as SimpleITK and Slicer have it"
    assert [word for note in volume.warnings if "is not used" in note for word in said if word in note] == said
    write_series(tmp_path / "known", stack(2), **field)
    assert not any("is not used" in note for note in read_volume(tmp_path / "known").warnings)


def test_a_single_file_is_one_slice_and_says_so(tmp_path):
    write_series(tmp_path, stack(3), shuffle=False)
    volume = read_volume(tmp_path / "001")
    assert np.array_equal(volume.array, stack(3)[1:2])
    assert np.allclose(volume.ijk_to_ras((0, 0, 0)), (20, -10, 32.5))
    assert "one slice" in volume.warnings[0]


def test_localizers_within_a_series_are_listed_apart(tmp_path):
    uid = write_series(tmp_path / "axial", stack(4))
    write_series(tmp_path / "coronal", stack(2), orientation=(1, 0, 0, 0, 0, -1), uid=uid)
    listed = list_series(tmp_path)
    assert [(one.uid, one.size[2]) for one in listed] == [(uid, 4), (f"{uid}#2", 2)]
    with pytest.raises(UserError, match="--series"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, uid).shape[0] == 4
    assert read_volume(tmp_path, "#2").shape[0] == 2


def test_enhanced_frames_are_ordered_by_position_not_by_their_order_in_the_file(tmp_path):
    path = write_enhanced(tmp_path / "one.dcm", stack(5), order=(3, 0, 4, 2, 1))
    volume = read_volume(path)
    assert np.array_equal(volume.array, stack(5))
    assert np.allclose(volume.spacing, (0.7, 0.8, 2.5))
    assert np.allclose(volume.ijk_to_ras((0, 0, 0)), (20, -10, 30))
    assert volume.source.slices == ((0, 2), (0, 5), (0, 4), (0, 1), (0, 3))
    assert volume.warnings == ()
    assert np.allclose(read_volume(tmp_path).affine, volume.affine)


@pytest.mark.parametrize(("thickness", "gap"), [("0.3", 0.3), (None, 1.0)])
def test_frames_whose_distance_is_not_stated_begin_at_their_position_and_say_so(tmp_path, thickness, gap):
    dataset = image_dataset(stack(4))
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [1, 2, 30], list(AXIAL)
    volume = read_volume(save(dataset, tmp_path / "a.dcm", PixelSpacing=["0.5", "0.6"], SliceThickness=thickness))
    assert np.allclose(volume.ijk_to_ras([(0, 0, 0), (0, 0, 3)]), [(-1, -2, 30), (-1, -2, 30 + 3 * gap)])
    assert f"{gap:g} mm is used" in volume.warnings[0]


def test_multi_frame_without_positions_is_stacked_as_stored_and_said(tmp_path):
    path = write_enhanced(
        tmp_path / "cine.dcm",
        stack(4),
        order=range(4),
        PerFrameFunctionalGroupsSequence=None,
        SharedFunctionalGroupsSequence=None,
        ImagePositionPatient=decimals((1, 2, 3)),
        ImageOrientationPatient=decimals(AXIAL),
        PixelSpacing=["0.5", "0.5"],
        SpacingBetweenSlices="4",
        FrameIncrementPointer=0x00181063,  # frame time
    )
    volume = read_volume(path)
    assert np.array_equal(volume.array, stack(4))
    assert np.allclose(volume.spacing, (0.5, 0.5, 4))
    assert "where they lie" in volume.warnings[0]


@pytest.mark.parametrize("kind", ["cone-beam CT", "SPECT"])
@pytest.mark.parametrize("gap", ["0.4", "-0.4"])
@pytest.mark.parametrize("orientation", [AXIAL, (1, 0, 0, 0, 0, -1), (0.96, 0.28, 0, 0, 0, -1)])
def test_frames_behind_one_position_lie_as_simpleitk_says(tmp_path, kind, gap, orientation):
    dataset = image_dataset(stack(4))
    place = Dataset()
    place.ImagePositionPatient, place.ImageOrientationPatient = decimals((1, 2, 30)), decimals(orientation)
    if kind == "SPECT":
        dataset.SOPClassUID, dataset.Modality = NuclearMedicineImageStorage, "NM"
        dataset.DetectorInformationSequence = [place]
        dataset.FrameIncrementPointer, dataset.SliceVector = 0x00540080, [1, 2, 3, 4]
    else:
        dataset.update(place)
    dataset.PixelSpacing, dataset.SpacingBetweenSlices, dataset.SliceThickness = ["0.5", "0.6"], gap, "0.4"
    path = save(dataset, tmp_path / "a.dcm")
    volume = read_volume(path)
    image = sitk.ReadImage(str(path))
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image))
    for ijk in ((0, 0, 0), (3, 4, 3)):
        x, y, z = image.TransformIndexToPhysicalPoint(ijk)
        assert np.allclose(volume.ijk_to_ras(ijk), (-x, -y, z), atol=1e-6)
    assert volume.warnings == ()
