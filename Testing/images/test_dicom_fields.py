"""Header fields hold anything: what is not needed is never fatal, whatever stands in it."""

import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_samples import garble, garbled, image_dataset, save, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import list_series, read_volume

VALUES_TOO = {"RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence"}
# What is read, without what an image cannot be understood without, or what says which of several it is.
READ = [
    "SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "EffectiveEchoTime", "DiffusionBValue", "DiffusionGradientDirectionSequence", "FlipAngle",
    "InversionTimes", "ComplexImageComponent", "FrameType", "ConvolutionKernel", "KVP",
    "NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime", "NominalPercentageOfRespiratoryPhase",
    "TemporalPositionIndex", "FrameAcquisitionNumber", "FrameReferenceDateTime", "FrameAcquisitionDateTime", "StackID",
    "ImageType", "EchoTime", "EchoNumbers", "InversionTime", "DiffusionGradientOrientation",
    "TemporalPositionIdentifier", "TriggerTime", "FrameReferenceTime", "AcquisitionNumber", "AcquisitionDate",
    "AcquisitionTime", "ContentTime", "EnergyWindowVector", "DetectorVector", "TimeSlotVector", 0x0019100C, 0x00431039,
    0x20011003, 0x00190010, 0x00430010, 0x20010010, "SeriesNumber", "SeriesDescription", "Modality", "InstanceNumber",
    "DetectorInformationSequence", "SliceVector", "FrameIncrementPointer", "SharedFunctionalGroupsSequence",
    "PlanarConfiguration", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "ModalityLUTSequence",
]  # fmt: skip
UNREAD = ["SpecificCharacterSet", "RescaleType", "PatientName", "StudyDate", "AcquisitionMatrix", 0x00291010]
GARBAGE = st.one_of(
    st.tuples(st.just("UN"), st.binary(max_size=40)),
    st.tuples(st.just("LO"), st.sampled_from(["", "abc", "1\\x", "2,5", "1e999", "nan", "-0", "9" * 40, "ISO 6\\no"])),
    st.tuples(st.just("FD"), st.sampled_from([float("nan"), float("inf"), -1.0, 0.0])),
    st.tuples(st.just("US"), st.sampled_from([0, 65535, [1, 2, 3]])),
    st.tuples(st.just("SQ"), st.just(Sequence([]))),
    st.tuples(st.just("OB"), st.binary(max_size=8)),
)


def stored(count=3):
    return np.random.default_rng(5).integers(0, 4000, (count, 6, 5)).astype(np.int16)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([*READ, *UNREAD]), GARBAGE, min_size=1, max_size=4), st.booleans())
def test_fields_that_are_not_needed_are_never_fatal(fields, everywhere):
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder), stored(), shuffle=False)
        paths = sorted(Path(folder).iterdir())
        for path in paths if everywhere else paths[1:2]:
            garble(path, fields)
        assert len(list_series(folder)) == 1
        volume = read_volume(folder)
        assert np.allclose(volume.spacing, (0.7, 0.8, 2.5))
        if not VALUES_TOO & fields.keys():
            assert np.array_equal(volume.array, stored())


@pytest.mark.parametrize("tag", READ)
@pytest.mark.parametrize("value", [("UN", b"\xff\x00ab"), ("LO", "abc"), ("SQ", Sequence([])), ("US", 65535)], ids=str)
def test_each_field_in_a_single_image(tmp_path, tag, value):
    path = save(image_dataset(stored()[0]), tmp_path / "a.dcm", PixelSpacing=["0.8", "0.7"])
    assert read_volume(garble(path, {tag: value})).shape == (1, 6, 5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["shared", "own"]), st.sampled_from(
    ["PixelValueTransformationSequence", "FrameVOILUTSequence", "MREchoSequence", "MRDiffusionSequence",
     "FrameContentSequence", "CardiacSynchronizationSequence", "MRImageFrameTypeSequence"]), GARBAGE)  # fmt: skip
def test_functional_groups_that_are_not_needed_are_never_fatal(where, keyword, value):
    with tempfile.TemporaryDirectory() as folder:
        path = write_enhanced(Path(folder) / "a.dcm", stored(), order=(2, 0, 1))
        dataset = pydicom.dcmread(path)
        groups = dataset.PerFrameFunctionalGroupsSequence if where == "own" else dataset.SharedFunctionalGroupsSequence
        groups[0][Tag(keyword)] = garbled(keyword, *value)
        dataset.save_as(path)
        assert np.array_equal(read_volume(path).array, stored())


def test_what_an_image_needs_is_asked_for_in_one_sentence(tmp_path):
    cases = [("Rows", ("US", 0)), ("BitsAllocated", ("US", 7)), ("PixelData", ("OW", b""))]
    for n, (keyword, value) in enumerate(cases):
        path = garble(save(image_dataset(stored()[0]), tmp_path / f"{n}.dcm"), {keyword: value})
        with pytest.raises(UserError) as refusal:
            read_volume(path)
        assert "\n" not in str(refusal.value) and f"{n}.dcm" in str(refusal.value)


def test_padding_written_with_the_wrong_sign_is_still_padding(tmp_path):
    values = stored()
    values[:, :2] = -2000
    write_series(tmp_path, values)
    for path in tmp_path.iterdir():
        garble(path, {"PixelPaddingValue": ("US", 65536 - 2000)})
    assert read_volume(tmp_path).array.min() >= 0


def test_a_file_without_the_format_of_its_pixels_is_read_as_usual(tmp_path):
    left_out = dict.fromkeys(["SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit"])
    path = save(image_dataset(stored()[0]), tmp_path / "a.dcm", **left_out)
    assert np.array_equal(read_volume(path).array[0], stored()[0])


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescale_that_cannot_be_understood_is_said(tmp_path, keyword):
    write_series(tmp_path, stored(), RescaleSlope="1", RescaleIntercept="0")
    assert read_volume(tmp_path).warnings == ()
    for path in tmp_path.iterdir():
        garble(path, {keyword: ("UN", b"abc ")})
    (note,) = read_volume(tmp_path).warnings
    assert f"{keyword} cannot be understood" in note


@pytest.mark.parametrize("directions", [[0.0] * 6, [1.0, 0, 0, 1, 0, 0], [1.0, 0, 0, 0, 0, 0]], ids=str)
def test_directions_that_span_no_plane_count_as_none(tmp_path, directions):
    write_series(tmp_path, stored())
    for path in tmp_path.iterdir():
        garble(path, {"ImageOrientationPatient": ("DS", directions)})
    assert len(list_series(tmp_path)) == 1
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, stored()) and np.allclose(volume.spacing, (0.7, 0.8, 2.5))
    assert any("axial slices are assumed" in note for note in volume.warnings)


@pytest.mark.parametrize("count", [1, 3])
def test_a_mosaic_is_said(tmp_path, count):
    """Siemens stores the slices of a functional volume side by side in one picture."""
    stored = np.arange(count * 48).reshape(count, 6, 8).astype(np.int16)
    write_series(tmp_path, stored, ImageType=["ORIGINAL", "PRIMARY", "FMRI", "NONE", "ND", "MOSAIC"], Modality="MR")
    volume = read_volume(tmp_path)
    assert volume.shape == stored.shape and any("mosaics" in text for text in volume.warnings)
