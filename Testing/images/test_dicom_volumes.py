"""Several volumes in one series: distinguished, listed and chosen; copies are left out with a note."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_samples import garble, image_dataset, save, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import NuclearMedicineImageStorage

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import list_series, read_volume

SLICES = 4


def stored(volumes):
    return np.random.default_rng(7).integers(0, 4000, (volumes * SLICES, 6, 5)).astype(np.int16)


def several(folder, count, **attributes):
    """`count` volumes of SLICES slices at the same positions, in one series; attributes as functions of the volume."""
    chosen = {name: (lambda k, value=value: value(k // SLICES)) for name, value in attributes.items()}
    write_series(folder, stored(count), positions=[(0, 0, 2 * (k % SLICES)) for k in range(count * SLICES)], **chosen)
    return stored(count).reshape(count, SLICES, 6, 5)


KINDS = {
    "echoes": ({"EchoTime": lambda v: str(20 * v + 20), "EchoNumbers": lambda v: v + 1}, "echo {n} (TE {te} ms)"),
    "b-values": ({"DiffusionBValue": lambda v: 500.0 * v}, "b = {b}"),
    "inversion times": ({"InversionTime": lambda v: str(100 * v + 50)}, "TI {ti} ms"),
    "time points": ({"TemporalPositionIdentifier": lambda v: v + 1}, "time point {n}"),
    "trigger times": ({"TriggerTime": lambda v: str(30 * v)}, "phase {n} (trigger time {tt} ms)"),
    "acquisitions": ({"AcquisitionNumber": lambda v: v + 1}, "acquisition {n}"),
    "acquisition times": ({"AcquisitionTime": lambda v: f"1200{10 + v}.5"}, "repeat {n}"),
    "kernels": ({"ConvolutionKernel": lambda v: "abc"[v]}, "kernel {k}"),
    "voltages": ({"KVP": lambda v: str(80 + 20 * v)}, "{kv} kV"),
    "kinds of image": ({"ImageType": lambda v: ["ORIGINAL", "PRIMARY", "MPR"[v]]}, "{c} image"),
    "Dixon": ({"ImageType": lambda v: ["DERIVED", "PRIMARY", "DIXON", ("FAT", "IN PHASE", "WATER")[v]]}, "dixon {d}"),
    "a private b-value": ({}, "b = {b}"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_volumes_of_one_series_are_listed_in_words_and_chosen(tmp_path, kind):
    attributes, label = KINDS[kind]
    volumes = several(tmp_path, 3, InstanceNumber=lambda v: None, **attributes)
    if kind == "a private b-value":
        for path in tmp_path.iterdir():
            v = next(v for v in range(3) if (pydicom.dcmread(path).pixel_array == volumes[v]).all(axis=(1, 2)).any())
            garble(path, {0x00190010: ("LO", "SIEMENS MR HEADER"), 0x0019100C: ("UN", str(500 * v).encode())})
    listed = list_series(tmp_path)
    assert len(listed) == 3
    for v, entry in enumerate(listed):
        words = label.format(n=v + 1, te=20 * v + 20, b=500 * v, ti=100 * v + 50, tt=30 * v, k="abc"[v], kv=80 + 20 * v,
                             c=("magnitude", "phase", "real")[v], d=("fat", "in phase", "water")[v])  # fmt: skip
        assert entry.description == f"sample, {words}"
        for wanted in (str(entry.number), entry.uid):
            volume = read_volume(tmp_path, wanted)
            assert np.array_equal(volume.array, volumes[v])
            assert volume.source.description == entry.description and len(volume.source.files) == SLICES
    with pytest.raises(UserError, match="--series"):
        read_volume(tmp_path)


def test_two_reasons_at_once(tmp_path):
    volumes = several(
        tmp_path, 6, EchoTime=lambda v: str(10 + v % 2), TemporalPositionIdentifier=lambda v: v // 2,
        InstanceNumber=lambda v: None,
    )  # fmt: skip
    listed = list_series(tmp_path)
    assert [entry.description for entry in listed[:2]] == [
        "sample, echo 1 (TE 10 ms), time point 0",
        "sample, echo 1 (TE 10 ms), time point 1",
    ]
    for entry, v in zip(listed, (0, 2, 4, 1, 3, 5), strict=True):
        assert np.array_equal(read_volume(tmp_path, entry.uid).array, volumes[v])


def test_gradient_directions_and_trigger_times_that_differ_from_slice_to_slice(tmp_path):
    directions = [None, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    volumes = several(
        tmp_path / "dwi", 3, DiffusionBValue=lambda v: 1000.0 if v else 0.0,
        DiffusionGradientOrientation=lambda v: directions[v], InstanceNumber=lambda v: None,
    )  # fmt: skip
    listed = list_series(tmp_path / "dwi")
    words = ["b = 0", "b = 1000, direction 1", "b = 1000, direction 2"]
    assert [entry.description for entry in listed] == [f"sample, {one}" for one in words]
    for entry, v in zip(listed, (0, 2, 1), strict=True):
        assert np.array_equal(read_volume(tmp_path / "dwi", entry.uid).array, volumes[v])

    write_series(
        tmp_path / "cine", stored(3), positions=[(0, 0, 2 * (k % SLICES)) for k in range(3 * SLICES)],
        TriggerTime=lambda k: str(40 * (k // SLICES) + 7 * (k % SLICES)), InstanceNumber=None,
    )  # fmt: skip
    listed = list_series(tmp_path / "cine")
    assert "phase 2 (trigger time 50.5 ms)" in listed[1].description
    assert np.array_equal(read_volume(tmp_path / "cine", "2").array, stored(3)[SLICES : 2 * SLICES])


@pytest.mark.parametrize("order", ["volume by volume", "slice by slice"])
def test_numbers_alone_tell_repeats_apart_when_they_run_through(tmp_path, order):
    places = [(v, k) for v in range(3) for k in range(SLICES)]
    numbers = {place: n for n, place in enumerate(sorted(places, key=None if order[0] == "v" else lambda p: p[::-1]))}
    positions = [(0, 0, 2 * k) for _, k in places]
    write_series(tmp_path, stored(3), positions=positions, InstanceNumber=lambda n: numbers[places[n]] + 1)
    for v in range(3):
        volume = read_volume(tmp_path, str(v + 1))
        assert np.array_equal(volume.array, stored(3)[v * SLICES : (v + 1) * SLICES])
        assert volume.source.description == f"sample, repeat {v + 1}"


@pytest.mark.parametrize("where", ["own", "time", "phase"])
def test_enhanced_frames_of_several_volumes(tmp_path, where):
    path = write_enhanced(tmp_path / "a.dcm", stored(2), order=range(2 * SLICES))
    dataset = pydicom.dcmread(path)
    for n, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2 * (n // 2)]
        item = Dataset()
        if where == "own":
            item.EffectiveEchoTime = 10.0 + n % 2
            frame.MREchoSequence = [item]
        elif where == "time":
            item.TemporalPositionIndex = n % 2 + 1
            frame.FrameContentSequence = [item]
        else:
            item.NominalPercentageOfCardiacPhase = 50.0 * (n % 2)
            frame.CardiacSynchronizationSequence = [item]
    dataset.save_as(path)
    words = {"own": "echo 2 (TE 11 ms)", "time": "time point 2", "phase": "cardiac phase 50 %"}[where]
    assert words in list_series(tmp_path)[1].description
    for v in range(2):
        volume = read_volume(tmp_path, str(v + 1))
        assert np.array_equal(volume.array, stored(2)[v::2])
        assert volume.source.slices == tuple((0, 2 * k + v + 1) for k in range(SLICES))
        assert np.array_equal(read_volume(path, str(v + 1)).array, volume.array)
    with pytest.raises(UserError, match="2 series or volumes.*--series.*" + words.split()[0]):
        read_volume(path)
    assert np.array_equal(read_volume(f"{path}#2").array, stored(2)[1::2])


def test_gated_spect_in_one_file(tmp_path):
    dataset = image_dataset(stored(2))
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [1, 2, 30], [1, 0, 0, 0, 1, 0]
    dataset.SOPClassUID, dataset.Modality = NuclearMedicineImageStorage, "NM"
    dataset.DetectorInformationSequence, dataset.PixelSpacing = [detector], [4, 4]
    dataset.SpacingBetweenSlices = "-4"
    dataset.FrameIncrementPointer = [0x00540070, 0x00540080]
    dataset.TimeSlotVector, dataset.SliceVector = [1] * SLICES + [2] * SLICES, [*range(1, SLICES + 1)] * 2
    save(dataset, tmp_path / "a.dcm", SeriesInstanceUID="1.2.3")
    assert [entry.description for entry in list_series(tmp_path)] == ["phase 1", "phase 2"]
    volume = read_volume(tmp_path, "2")
    assert np.array_equal(volume.array, stored(2)[SLICES:])
    assert np.allclose(volume.ijk_to_ras((0, 0, 3)), (-1, -2, 18))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, SLICES - 1), min_size=1, max_size=6), st.booleans())
def test_copies_are_left_out_and_said_whatever_else_they_hold(which, renumbered):
    """Invariant: a series with copies reads as it does without them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(folder, stored(1), shuffle=False)
        for n, k in enumerate(which):
            copy = shutil.copy(folder / f"{k:03d}", folder / f"copy {n}")
            dataset = pydicom.dcmread(copy)
            if renumbered:
                dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{n}"
                dataset.InstanceNumber, dataset.AcquisitionNumber, dataset.AcquisitionTime = 50 + n, 9, "235959"
                dataset.save_as(copy)
        volume = read_volume(folder)
        assert np.array_equal(volume.array, stored(1))
        (note,) = volume.warnings
        assert "left out" in note and "mm" in note and (f"{len(which)} images" in note or len(which) == 1)


def test_a_copy_with_other_pixels_is_no_copy(tmp_path):
    write_series(tmp_path, stored(1), shuffle=False, InstanceNumber=None)
    dataset = pydicom.dcmread(tmp_path / "002")
    dataset.PixelData = stored(2)[-1].tobytes()
    dataset.save_as(tmp_path / "other")
    with pytest.raises(UserError, match="5 images at only 4 positions.*“002” and “other” at S 35.0 mm"):
        read_volume(tmp_path)


def test_images_that_all_have_one_uid_are_not_copies(tmp_path):
    """Careless anonymisers write the same one into every file."""
    write_series(tmp_path, stored(1), SOPInstanceUID="1.2.3")
    assert np.array_equal(read_volume(tmp_path).array, stored(1))


def test_a_second_acquisition_of_one_slice_is_a_volume_of_its_own(tmp_path):
    write_series(tmp_path, stored(1), shuffle=False, AcquisitionNumber=1)
    dataset = pydicom.dcmread(tmp_path / "001")
    dataset.PixelData, dataset.AcquisitionNumber = stored(2)[-1].tobytes(), 2
    dataset.save_as(tmp_path / "again")
    assert [(entry.size[2], entry.description) for entry in list_series(tmp_path)] == [
        (SLICES, "sample, acquisition 1"),
        (1, "sample, acquisition 2"),
    ]


def test_an_attribute_that_differs_between_slices_tears_nothing_apart(tmp_path):
    differing = {"EchoTime": lambda k: str(10 + k % 2), "AcquisitionNumber": lambda k: k, "TriggerTime": str}
    write_series(tmp_path, stored(1), **differing)
    assert np.array_equal(read_volume(tmp_path).array, stored(1))


def test_a_choice_may_follow_the_folder(tmp_path):
    volumes = several(tmp_path / "case 1", 2, EchoTime=lambda v: str(20 + v))
    uid = list_series(tmp_path / "case 1")[1].uid
    for chosen in ("2", uid):
        assert np.array_equal(read_volume(f"{tmp_path / 'case 1'}#{chosen}").array, volumes[1])
    with pytest.raises(UserError, match="not among"):
        read_volume(f"{tmp_path / 'case 1'}#7")
    with pytest.raises(UserError, match="does not exist"):
        read_volume(f"{tmp_path / 'case 2'}#2")
    (tmp_path / "case 1").rename(tmp_path / "case#2")  # a # of the name itself
    assert np.array_equal(read_volume(tmp_path / "case#2", "1").array, volumes[0])
