"""Folders as they come from a disc or an archive: several series, other files, copies, damage."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_samples import write_series

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import list_series, read_volume

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real images is absent")


def slices(count, seed=0):
    return np.random.default_rng(seed).integers(0, 4000, (count, 6, 5)).astype(np.int16)


@pytest.fixture
def two_series(tmp_path):
    second = write_series(tmp_path / "b", slices(3, 1), Modality="MR", SeriesDescription="T1", SeriesNumber=7)
    first = write_series(tmp_path / "a" / "deep", slices(5), SeriesDescription="CT thin", SeriesNumber=2)
    return tmp_path, first, second


def test_sub_folders_and_other_files_do_not_matter(tmp_path):
    write_series(tmp_path / "study" / "série 1 ü", slices(4))
    moved = sorted((tmp_path / "study" / "série 1 ü").iterdir())[:2]
    for path in moved:
        (tmp_path / "other").mkdir(exist_ok=True)
        path.rename(tmp_path / "other" / f"{path.name}.txt")
    (tmp_path / "DICOMDIR").write_bytes((b"\0" * 128) + b"DICM" + b"\x02\0\0\0UL\x04\0\0\0\0\0")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "binary.raw").write_bytes(b"\x08\0\x05\0" + bytes(range(256)) * 4)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, slices(4))
    assert volume.warnings == ()


def test_the_list_says_what_each_series_is(two_series):
    folder, first, second = two_series
    one, two = list_series(folder)
    assert (one.number, one.uid, one.description, one.modality) == (1, first, "CT thin", "CT")
    assert (one.size, one.files) == ((5, 6, 5), 5)
    assert np.allclose(one.spacing, (0.7, 0.8, 2.5))
    assert (two.number, two.uid, two.modality, two.size) == (2, second, "MR", (5, 6, 3))
    assert "T1" in str(two) and "5×6×3" in str(two) and second in str(two)


def test_several_series_are_asked_about_and_chosen_by_number_uid_or_part_of_it(two_series):
    folder, first, second = two_series
    with pytest.raises(UserError) as refusal:
        read_volume(folder)
    assert "--series" in str(refusal.value) and first in str(refusal.value) and "T1" in str(refusal.value)
    for wanted in ("2", second, second[-12:]):
        volume = read_volume(folder, wanted)
        assert np.array_equal(volume.array, slices(3, 1))
        assert (volume.modality, volume.source.description, volume.source.series_uid) == ("MR", "T1", second)
    for wanted, problem in (("3.99.9", "not among"), ("9", "not among"), (first[:4], "several")):
        with pytest.raises(UserError, match=problem):
            read_volume(folder, wanted)


def test_copies_of_the_same_image_count_once(tmp_path):
    write_series(tmp_path / "a", slices(4))
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, slices(4))


def test_damaged_headers_are_said_and_the_rest_is_read(tmp_path):
    write_series(tmp_path, slices(5), shuffle=False)
    victim = tmp_path / "002"
    victim.write_bytes(victim.read_bytes()[:340])
    volume = read_volume(tmp_path)
    assert volume.shape[0] == 5
    assert "002" in volume.warnings[0] and "missing" in volume.warnings[1]
    with pytest.raises(UserError, match="damaged|without an image"):
        read_volume(victim)


def test_segmentations_beside_their_images_are_no_second_series(tmp_path):
    write_series(tmp_path / "images", slices(3))
    write_series(tmp_path / "seg", slices(3), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")
    assert read_volume(tmp_path).modality == "CT"
    with pytest.raises(UserError, match="only segmentation"):
        read_volume(tmp_path / "seg")
    with pytest.raises(UserError, match="segmentation"):
        read_volume(next((tmp_path / "seg").iterdir()))


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(UserError, match="no DICOM images"):
        read_volume(tmp_path)
    with pytest.raises(UserError, match="no DICOM images"):
        list_series(tmp_path)


def test_dicom_without_an_image_is_refused(tmp_path):
    sample = Path(pydicom.__file__).parent / "data" / "test_files" / "rtstruct.dcm"
    if not sample.exists():
        pytest.skip("this pydicom does not ship the file")
    shutil.copy(sample, tmp_path / "rtstruct.dcm")
    with pytest.raises(UserError, match="without an image"):
        read_volume(tmp_path / "rtstruct.dcm")


def test_nothing_that_names_the_patient_is_kept(tmp_path):
    write_series(
        tmp_path, slices(3), PatientName="Secret^Person", PatientID="4711", InstitutionName="Hospital"
    )
    volume = read_volume(tmp_path)
    kept = f"{volume!r} {volume.source!r} {list_series(tmp_path)!r}"
    assert not any(word in kept for word in ("Secret", "4711", "Hospital"))


@real_data
@pytest.mark.parametrize(
    "name", ["ct-abdomen-dicom/series", "brain-mr-oblique-dicom/t1post", "brain-mr-oblique-dicom/flair"]
)
def test_real_series_agree_with_simpleitk(name):
    volume = read_volume(DATA / name)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(DATA / name)))
    image = reader.Execute()
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image))
    corners = [(0, 0, 0), tuple(n - 1 for n in image.GetSize()), (image.GetWidth() - 1, 0, 3)]
    for corner in corners:
        x, y, z = image.TransformIndexToPhysicalPoint(corner)
        assert np.allclose(volume.ijk_to_ras(corner), (-x, -y, z), atol=1e-6)
    assert volume.warnings == ()


@real_data
def test_real_labels_lie_on_the_organs_they_name():
    """The labels' j axis runs the other way: by index they would be elsewhere, in RAS they must fit."""
    volume = read_volume(DATA / "ct-abdomen-dicom" / "series")
    labels = read_volume(DATA / "ct-abdomen-dicom" / "segmentation.nii.gz")
    assert volume.affine[1, 1] * labels.affine[1, 1] < 0
    for value, low, high in (
        (5, 60, 160),
        (52, 80, 250),
        (1, 60, 200),
    ):  # liver, aorta, spleen in contrast phase
        k, j, i = np.nonzero(labels.array == value)
        at = volume.ras_to_ijk(labels.ijk_to_ras(np.column_stack((i, j, k))))
        i, j, k = np.rint(at).astype(int).T
        inside = (k >= 0) & (k < volume.shape[0])
        assert low < np.median(volume.array[k[inside], j[inside], i[inside]]) < high


@pytest.mark.parametrize("uid", ["1.2.3", ""], ids=["one UID", "no UID"])
@pytest.mark.parametrize(
    ("keyword", "values", "words"),
    [
        ("PatientID", ("A", "B"), "patient"),
        ("StudyInstanceUID", ("1.2.4", "1.2.5"), "study"),
        ("FrameOfReferenceUID", ("1.2.6", "1.2.7"), "frame of reference"),
        ("SeriesNumber", (3, 4), "series number"),
    ],
)
@pytest.mark.parametrize("apart", [0, 1.25, 8.0, 10.0])
def test_series_that_an_anonymiser_gave_one_uid_are_told_apart(tmp_path, uid, keyword, values, words, apart):
    """Their slices lie at the same places, in between, behind each other: never in one volume."""
    same = {"PatientID": "TEST", "StudyInstanceUID": "1.2.8", "FrameOfReferenceUID": "1.2.9", "SeriesInstanceUID": uid}
    for n, value in enumerate(values):
        positions = [(0, 0, apart * n + 2.5 * k) for k in range(4)]
        write_series(tmp_path / f"{n}", slices(4, n), positions=positions, **(same | {keyword: value}))
    first, second = list_series(tmp_path)
    assert f"{words} 1 of 2" in first.description and f"{words} 2 of 2" in second.description
    for n in (1, 2):
        volume = read_volume(tmp_path, str(n))
        assert np.array_equal(volume.array, slices(4, n - 1)) and volume.warnings == ()


@pytest.mark.parametrize("name", ["patient", "study"])
def test_a_patient_study_or_frame_of_reference_of_each_file_of_one_scan_is_passed_over_and_said(tmp_path, name):
    keyword = {"patient": "PatientID", "study": "StudyInstanceUID"}[name]
    fresh = {key: lambda k: f"1.2.{k + 1}" for key in (keyword, "FrameOfReferenceUID")}
    write_series(tmp_path, slices(4), **({"PatientID": lambda k: "TEST " if k % 2 else "test"} | fresh))
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, slices(4))
    (note,) = volume.warnings
    assert note.startswith(f"Each of the 4 files names another {name}")


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_two_files_that_differ_are_two_series(tmp_path, keyword):
    write_series(tmp_path, slices(2), **{keyword: lambda k: f"1.2.{k + 1}"})
    assert [one.size[2] for one in list_series(tmp_path)] == [1, 1]


@pytest.mark.parametrize("lack", ["even distances", "positions", "a UID"])
def test_single_images_of_several_patients_are_never_stacked(tmp_path, lack):
    heights = [0, 30, 43] if lack == "even distances" else [0, 5, 10]
    without = {"positions": {"ImagePositionPatient": None}, "a UID": {"SeriesInstanceUID": ""}}.get(lack, {})
    positions = [(0, 0, height) for height in heights]
    write_series(tmp_path, slices(3), positions=positions, PatientID=lambda k: f"P{k}", **without)
    assert sorted(one.size[2] for one in list_series(tmp_path)) == [1, 1, 1]
