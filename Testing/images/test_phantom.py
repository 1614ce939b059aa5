"""The body phantom: labelled, reproducible, oblique, and the same after a trip through DICOM."""


import numpy as np
import pydicom
import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import Volume, body_phantom, read_volume, write_dicom_series


@pytest.fixture(scope="module")
def phantom():
    return body_phantom()


def test_every_organ_is_there_in_its_own_hounsfield_units(phantom):
    volume, labels, names = phantom
    assert volume.array.dtype == np.int16 and labels.dtype == np.uint8 and labels.shape == volume.shape
    assert {"liver", "spleen", "aorta", "left kidney", "right kidney", "vertebra", "spinal cord"} <= set(
        names.values()
    )
    assert set(np.unique(labels)) == {0, *names}
    means = {name: volume.array[labels == value].mean() for value, name in names.items()}
    assert 80 < means["liver"] < means["right kidney"] < means["aorta"] < means["vertebra"]
    assert volume.array[0, 0, 0] < -900
    assert all((labels == value).sum() > 1000 for value in names)


def test_the_patient_lies_as_patients_do(phantom):
    volume, labels, names = phantom

    def centre(name):
        (value,) = (value for value, one in names.items() if one == name)
        return volume.ijk_to_ras(np.argwhere(labels == value)[:, ::-1].mean(axis=0))

    assert centre("liver")[0] > 20 and centre("spleen")[0] < -50  # the liver is on the right
    assert centre("vertebra")[1] < centre("aorta")[1]  # the spine is behind the aorta
    assert centre("spleen")[2] > centre("left kidney")[2]


def test_the_geometry_is_oblique_and_anisotropic(phantom):
    volume, _, _ = phantom
    axes = volume.affine[:3, :3] / volume.spacing
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert 5 < np.degrees(np.arccos(axes[2, 2])) < 15
    assert volume.spacing[2] > 1.5 * volume.spacing[0]


def test_the_same_seed_gives_the_same_phantom_and_another_a_different_one():
    small = {"shape": (6, 48, 48), "spacing": (7.0, 7.0, 12.0)}
    first, labels, _ = body_phantom(1, **small)
    again, labels_again, _ = body_phantom(1, **small)
    other, other_labels, _ = body_phantom(2, **small)
    assert first.digest == again.digest and np.array_equal(labels, labels_again)
    assert first.digest != other.digest and not np.array_equal(labels, other_labels)


@pytest.mark.parametrize("wrong", [{"shape": (0, 4, 4)}, {"shape": (4, 4)}, {"spacing": (1, 1, 0)}])
def test_impossible_phantoms_are_refused(wrong):
    with pytest.raises(UserError):
        body_phantom(**wrong)


def test_a_dicom_series_of_it_reads_back_the_same(tmp_path):
    volume, _, _ = body_phantom(shape=(12, 40, 50), spacing=(6.1, 7.3, 9.7))
    files = write_dicom_series(volume, tmp_path / "series")
    read = read_volume(tmp_path / "series")
    assert np.array_equal(read.array, volume.array) and read.array.dtype == volume.array.dtype
    assert np.allclose(read.affine, volume.affine, atol=1e-8)
    assert (read.modality, read.warnings) == ("CT", ())
    assert read.window is not None
    assert sorted(files) == sorted((tmp_path / "series").iterdir())
    in_name_order = [float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in sorted(files)]
    assert in_name_order != sorted(in_name_order)  # names say nothing about the order
    assert pydicom.dcmread(files[0]).PatientName == "PHANTOM"


def test_what_a_ct_series_cannot_hold_is_refused(tmp_path):
    fraction = Volume(np.full((2, 3, 4), 0.5, np.float32), np.diag([-1.0, -1, 1, 1]))
    mirrored = Volume(np.zeros((2, 3, 4), np.int16), np.diag([1.0, -1, 1, 1]))
    for volume in (fraction, mirrored):
        with pytest.raises(UserError):
            write_dicom_series(volume, tmp_path)
    assert not list(tmp_path.iterdir())
