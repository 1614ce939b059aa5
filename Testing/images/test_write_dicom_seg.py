"""DICOM SEG: voxels, geometry and references, read back with highdicom and pydicom."""

import sys

import numpy as np
import pydicom
import pytest
from dicom_samples import garble, image_dataset, save, write_enhanced, write_series
from pydicom.uid import generate_uid

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import SegmentInfo, Volume, read_volume, write_labelmap
from SAMFineTuneLib.images.dicom_seg import check_dicom_seg

highdicom = pytest.importorskip("highdicom")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TILTED = (0.96, 0.28, 0.0, -0.168, 0.576, 0.8)  # two perpendicular unit vectors
SEGMENTS = [
    SegmentInfo("liver", 5, (0.8, 0.4, 0.3)),
    SegmentInfo("Läsion 肝", 300, (0.0, 0.5, 1.0)),
]


def stored(count=5):
    return np.random.default_rng(0).integers(0, 4000, (count, 6, 7)).astype(np.uint16)


def labels_of(volume):
    """Every slice, row and column differs, so that any flip or shift is seen."""
    labels = np.zeros(volume.shape, np.uint16)
    labels[1, 0:2, 1:6] = 5
    labels[3, 4, 0] = 5
    labels[3, 2:5, 5] = 300
    return labels


def read_back(path):
    """{segment label: set of RAS positions of its voxels, rounded}, by highdicom's own geometry."""
    segmentation = highdicom.seg.segread(path)
    volume = segmentation.get_volume(combine_segments=True)
    found = {}
    for item in segmentation.SegmentSequence:
        indices = np.argwhere(volume.array == item.SegmentNumber)
        places = np.column_stack((indices, np.ones(len(indices)))) @ (LPS @ volume.affine).T
        found[str(item.SegmentLabel)] = {tuple(place) for place in np.round(places[:, :3], 2) + 0.0}
    return found


def expected(volume, labels, segments=SEGMENTS):
    found = {}
    for segment in segments:
        ijk = np.argwhere(labels == segment.value)[:, ::-1]
        found[segment.name] = {tuple(place) for place in np.round(volume.ijk_to_ras(ijk), 2) + 0.0}
    return found


def test_a_series_gets_its_voxels_in_place_with_names_colours_and_references(tmp_path):
    uid = write_series(
        tmp_path / "in",
        stored(),
        orientation=TILTED,
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^",
    )
    volume = read_volume(tmp_path / "in")
    labels = labels_of(volume)
    path = tmp_path / "out.dcm"
    assert write_labelmap(path, labels, volume, SEGMENTS[::-1]) == ()
    assert read_back(path) == expected(volume, labels)

    dataset = pydicom.dcmread(path)
    assert dataset.Modality == "SEG" and dataset.SegmentationType == "BINARY"
    assert dataset.NumberOfFrames == 3
    assert [item.SegmentNumber for item in dataset.SegmentSequence] == [1, 2]
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == uid != dataset.SeriesInstanceUID
    instances = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    headers = [pydicom.dcmread(one, stop_before_pixels=True) for one in (tmp_path / "in").iterdir()]
    assert instances == {header.SOPInstanceUID for header in headers}
    assert dataset.StudyInstanceUID == headers[0].StudyInstanceUID
    assert dataset.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert str(dataset.PatientName) == "Müller^"
    colour = highdicom.color.CIELabColor.from_rgb(204, 102, 76)
    assert np.allclose(dataset.SegmentSequence[0].RecommendedDisplayCIELabValue, colour.value, atol=300)
    # each frame names the very instance whose slice it lies on
    by_uid = {header.SOPInstanceUID: header.ImagePositionPatient for header in headers}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        named = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert np.allclose(frame.PlanePositionSequence[0].ImagePositionPatient, by_uid[named], atol=1e-3)


def test_an_enhanced_file_with_frames_in_any_order(tmp_path):
    source = write_enhanced(tmp_path / "in.dcm", stored(), order=(3, 0, 4, 2, 1))
    volume = read_volume(source)
    labels = labels_of(volume)
    write_labelmap(tmp_path / "out.dcm", labels, volume, SEGMENTS)
    assert read_back(tmp_path / "out.dcm") == expected(volume, labels)


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize(("thickness", "stated"), [("2.5", 2.5), ("8", 8), ("0", 5), (None, 5)])
def test_slices_that_are_not_as_thick_as_they_are_apart(tmp_path, enhanced, thickness, stated):
    """As every second slice of a scan: the thickness is the images' own, as highdicom states it, too."""
    source = tmp_path / "in" / "a.dcm"
    if enhanced:
        write_enhanced(source, stored(), order=(3, 0, 4, 2, 1), step=5)
        dataset = pydicom.dcmread(source)
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = thickness
        dataset.save_as(source)
    else:
        write_series(source.parent, stored(), step=5, SliceThickness=thickness)
    volume = read_volume(source.parent)
    labels = labels_of(volume)
    write_labelmap(tmp_path / "out.dcm", labels, volume, SEGMENTS)
    assert read_back(tmp_path / "out.dcm") == expected(volume, labels)
    (measures,) = pydicom.dcmread(tmp_path / "out.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (stated, 5)
    assert highdicom.seg.segread(tmp_path / "out.dcm").get_volume().spacing[0] == 5


PLACED = ("PixelMeasuresSequence", "PlaneOrientationSequence")


@pytest.mark.parametrize("moved", [PLACED[:1], PLACED[1:], PLACED], ids=str)
def test_an_enhanced_file_whose_groups_are_each_frames_own(tmp_path, moved):
    source = write_enhanced(tmp_path / "in.dcm", stored(), order=(3, 0, 4, 2, 1))
    dataset = pydicom.dcmread(source)
    for keyword in moved:
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            setattr(frame, keyword, dataset.SharedFunctionalGroupsSequence[0][keyword].value)
        del dataset.SharedFunctionalGroupsSequence[0][keyword]
    dataset.save_as(source)
    volume = read_volume(source)
    labels = labels_of(volume)
    write_labelmap(tmp_path / "out.dcm", labels, volume, SEGMENTS)
    assert read_back(tmp_path / "out.dcm") == expected(volume, labels)
    seg = pydicom.dcmread(tmp_path / "out.dcm")
    (item,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert (item.ReferencedSOPInstanceUID, item.ReferencedSOPClassUID) == (dataset.SOPInstanceUID, dataset.SOPClassUID)
    places = {n: frame.PlanePositionSequence[0] for n, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence, 1)}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        named = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        here = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(here, places[named].ImagePositionPatient, atol=1e-3)


def test_one_echo_of_an_enhanced_file(tmp_path):
    twice = np.concatenate([stored(), stored() + 1])
    source = write_enhanced(tmp_path / "in" / "a.dcm", twice, order=range(10))
    dataset = pydicom.dcmread(source)
    for n, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        echo = pydicom.Dataset()
        echo.EffectiveEchoTime = 10.0 if n % 2 else 20.0
        frame.MREchoSequence = [echo]
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2 * (n // 2)]
    dataset.save_as(source)
    volume = read_volume(tmp_path / "in", "1")
    assert np.array_equal(volume.array, twice[1::2])
    labels = labels_of(volume)
    write_labelmap(tmp_path / "out.dcm", labels, volume, SEGMENTS)
    assert read_back(tmp_path / "out.dcm") == expected(volume, labels)
    frames = pydicom.dcmread(tmp_path / "out.dcm").PerFrameFunctionalGroupsSequence
    named = {frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber for frame in frames}
    assert named == {4, 8}


@pytest.mark.parametrize("gap", ["2", "-2"])
def test_frames_behind_one_position(tmp_path, gap):
    dataset = image_dataset(stored())
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = (generate_uid() for _ in "abc")
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SpacingBetweenSlices = [0.5, 0.6], gap
    volume = read_volume(save(dataset, tmp_path / "in.dcm"))
    labels = labels_of(volume)
    write_labelmap(tmp_path / "out.dcm", labels, volume, SEGMENTS)
    assert read_back(tmp_path / "out.dcm") == expected(volume, labels)


GARBLED = ("SliceThickness", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
           "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientAge", "PatientWeight", "SeriesNumber",
           "LossyImageCompressionRatio", "PositionReferenceIndicator", "SpacingBetweenSlices")  # fmt: skip


@pytest.mark.parametrize("value", [b"", b"abc\\1 ", b"\xff\xfe\x00"], ids=str)
def test_garbled_attributes_that_are_not_needed_do_not_hinder_it(tmp_path, value):
    write_series(tmp_path / "in", stored())
    for path in (tmp_path / "in").iterdir():
        garble(path, {keyword: ("UN", value) for keyword in GARBLED})
    volume = read_volume(tmp_path / "in")
    labels = labels_of(volume)
    check_dicom_seg(volume)
    write_labelmap(tmp_path / "out.dcm", labels, volume, SEGMENTS)
    assert read_back(tmp_path / "out.dcm") == expected(volume, labels)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not from one"):
        check_dicom_seg(Volume(stored(), np.eye(4)))
    write_series(tmp_path / "uneven", stored(), positions=[(0, 0, z) for z in (0, 2, 4, 7.3, 11)])
    with pytest.raises(UserError, match="even distances"):
        check_dicom_seg(read_volume(tmp_path / "uneven"))
    write_series(tmp_path / "plain", stored(), FrameOfReferenceUID=None)
    volume = read_volume(tmp_path / "plain")
    with pytest.raises(UserError, match="lacks FrameOfReferenceUID"):
        check_dicom_seg(volume)
    write_series(tmp_path / "fine", stored())
    volume = read_volume(tmp_path / "fine")
    check_dicom_seg(volume)
    assert not list(tmp_path.glob("*.dcm"))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match="one more package"):
        check_dicom_seg(volume)


def test_empty_segments_are_left_out_and_said(tmp_path):
    write_series(tmp_path / "in", stored())
    volume = read_volume(tmp_path / "in")
    labels = labels_of(volume)
    empty = SegmentInfo("nothing", 7, (1, 1, 1))
    (note,) = write_labelmap(tmp_path / "out.dcm", labels, volume, [*SEGMENTS, empty])
    assert "nothing" in note and "empty" in note
    assert read_back(tmp_path / "out.dcm") == expected(volume, labels)
    with pytest.raises(UserError, match="segments are empty"):
        write_labelmap(tmp_path / "none.dcm", labels * 0, volume, SEGMENTS)
    assert not (tmp_path / "none.dcm").exists()


def test_voxels_on_missing_slices_are_said(tmp_path):
    write_series(tmp_path / "in", stored(), positions=[(0, 0, z) for z in (0, 2, 4, 8, 10)])
    volume = read_volume(tmp_path / "in")
    labels = labels_of(volume)
    assert volume.shape[0] == 6 and (labels[3] > 0).sum() == 4
    notes = write_labelmap(tmp_path / "out.dcm", labels, volume, SEGMENTS)
    assert len(notes) == 2 and "4 voxels on slices missing from the series (S 6.0 mm)" in notes[0]
    assert "Läsion" in notes[1]
    labels[3] = 0
    assert read_back(tmp_path / "out.dcm") == expected(volume, labels, SEGMENTS[:1])


def test_only_dicom_volumes_with_references_can_be_written(tmp_path):
    volume = Volume(stored(), np.eye(4))
    with pytest.raises(UserError, match="not from one"):
        write_labelmap(tmp_path / "out.dcm", labels_of(volume), volume, SEGMENTS)
    write_series(tmp_path / "in", stored(), StudyInstanceUID=None, FrameOfReferenceUID=None)
    volume = read_volume(tmp_path / "in")
    with pytest.raises(UserError, match="lacks StudyInstanceUID, FrameOfReferenceUID"):
        write_labelmap(tmp_path / "out.dcm", labels_of(volume), volume, SEGMENTS)
    with pytest.raises(UserError, match="label value 300"):
        write_labelmap(tmp_path / "out.dcm", labels_of(volume), volume, SEGMENTS[:1])
    assert not (tmp_path / "out.dcm").exists()


def test_source_files_that_were_replaced_or_are_gone_are_said(tmp_path):
    write_series(tmp_path / "in", stored())
    volume = read_volume(tmp_path / "in")
    write_series(tmp_path / "in", stored(), PatientID="ANOTHER")
    with pytest.raises(UserError, match="replaced by those of another series"):
        write_labelmap(tmp_path / "out.dcm", labels_of(volume), volume, SEGMENTS)
    next((tmp_path / "in").iterdir()).unlink()
    with pytest.raises(UserError, match="are gone"):
        write_labelmap(tmp_path / "out.dcm", labels_of(volume), volume, SEGMENTS)


@pytest.mark.parametrize("name", ["lobe\\upper", "lobe\nupper", "lobe " * 20])
def test_names_that_dicom_cannot_hold_are_changed_and_said(tmp_path, name):
    write_series(tmp_path / "in", stored())
    volume = read_volume(tmp_path / "in")
    segments = [SegmentInfo(name, 1, (1.0, 0.0, 0.0)), *SEGMENTS[1:]]
    (note,) = write_labelmap(tmp_path / "out.dcm", labels_of(volume) > 0, volume, segments[:1])
    (item,) = pydicom.dcmread(tmp_path / "out.dcm").SegmentSequence
    assert item.SegmentLabel == name.replace("\\", " ").replace("\n", " ")[:64].strip() and name.strip() in note


def test_without_highdicom_the_extra_is_named(tmp_path, monkeypatch):
    write_series(tmp_path / "in", stored())
    volume = read_volume(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match=r"samfinetune\[dicom-seg\]"):
        write_labelmap(tmp_path / "out.dcm", labels_of(volume), volume, SEGMENTS)
