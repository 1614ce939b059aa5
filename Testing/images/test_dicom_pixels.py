"""Voxel values of DICOM files: every transfer syntax, rescaling, MONOCHROME1, padding, damage."""

import re
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_samples import image_dataset, save, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import pydicom_versions, read_volume

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def smooth(dtype, low, high, shape=(3, 48, 40)):
    """An image that covers low to high, with noise."""
    k, j, i = np.indices(shape)
    values = np.sin(j / 5 + k) + np.cos(i / 4) + np.random.default_rng(0).normal(0, 0.1, shape)
    values = (values - values.min()) / np.ptp(values)
    return np.rint(low + values * (high - low)).astype(dtype)


KINDS = [
    ("u1", 0, 255, 8),
    ("u2", 0, 4095, 12),
    ("u2", 0, 65535, 16),
    ("i2", -1024, 3071, 13),
    ("i2", -32768, 32767, 16),
]


@pytest.mark.parametrize("dtype", ["u2", "i2"])
@pytest.mark.parametrize("high_bit", [13, 15])
@pytest.mark.parametrize("filled", [False, True])
def test_values_in_the_upper_bits_of_a_pixel(tmp_path, dtype, high_bit, filled):
    """As images of before 2013 may have them; where there is anything below, the header is wrong."""
    values = smooth(dtype, 0 if dtype == "u2" else -2048, 2047 if dtype == "i2" else 4095)
    shift = 0 if filled else high_bit - 11
    write_series(tmp_path, (values << shift).astype(dtype), BitsStored=12, HighBit=high_bit)
    assert np.array_equal(read_volume(tmp_path).array, values)


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_floating_point_pixels(tmp_path, keyword, dtype):
    values = smooth("i2", -100, 100) + np.array(0.25, dtype)
    write_series(tmp_path, values.astype("i2"), shuffle=False)
    for file, one in zip(sorted(tmp_path.iterdir()), values, strict=True):
        dataset = pydicom.dcmread(file)
        for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            del dataset[name]
        save(dataset, file, BitsAllocated=8 * values.itemsize, **{keyword: one.tobytes()})
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32 and np.array_equal(volume.array, values)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("frames", ["single", "multi"])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless], ids=lambda uid: uid.name)
def test_lossless_compression_gives_the_stored_values(tmp_path, syntax, kind, frames):
    dtype, low, high, bits = kind
    stored = smooth(dtype, low, high)[: 1 if frames == "single" else 3]
    dataset = image_dataset(stored[0] if frames == "single" else stored, bits)
    try:
        dataset.compress(syntax, generate_instance_uid=False)
    except RuntimeError as error:
        pytest.skip(str(error))  # the encoder is a package of its own; reading needs none
    volume = read_volume(save(dataset, tmp_path / "image.dcm"))
    assert np.array_equal(volume.array, stored)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_uncompressed_syntaxes_give_the_stored_values(tmp_path, syntax, kind):
    dtype, low, high, bits = kind
    stored = smooth(dtype, low, high)[0]
    dataset = image_dataset(stored, bits)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
        dataset["PixelData"].VR = "OB" if dtype == "u1" else "OW"
    volume = read_volume(save(dataset, tmp_path / "image.dcm"))
    assert np.array_equal(volume.array[0], stored)


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("uint8", 0, 255), ("uint16", 0, 4000), ("int16", -1000, 3000)]
)
def test_jpeg_lossless_gives_the_stored_values(tmp_path, dtype, low, high):
    stored = smooth(dtype, low, high)[:1]
    path = tmp_path / "image.dcm"
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(sitk.GetImageFromArray(stored))
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert np.array_equal(read_volume(path).array, stored)


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("693_J2KI.dcm", JPEG2000),
        ("J2K_pixelrep_mismatch.dcm", JPEG2000Lossless),
        ("MR_small_jp2klossless.dcm", JPEG2000Lossless),
        ("MR_small_jpeg_ls_lossless.dcm", JPEGLSLossless),
        ("JPEGLSNearLossless_16.dcm", JPEGLSNearLossless),
        ("MR_small_RLE.dcm", RLELossless),
        ("MR_small_padded.dcm", "1.2.840.10008.1.2.1"),
        ("MR_small_bigendian.dcm", ExplicitVRBigEndian),
        ("CT_small.dcm", "1.2.840.10008.1.2.1"),
        ("image_dfl.dcm", DeflatedExplicitVRLittleEndian),
    ],
)
def test_other_peoples_files_agree_with_pydicom(name, syntax):
    if not (SAMPLES / name).exists():
        pytest.skip("this pydicom does not ship the file")
    dataset = pydicom.dcmread(SAMPLES / name, force=True)
    assert dataset.file_meta.TransferSyntaxUID == syntax
    try:
        expected = dataset.pixel_array.astype(float)
    except RuntimeError as error:
        pytest.skip(str(error))  # pydicom needs packages of its own for it
    expected = expected * float(dataset.get("RescaleSlope") or 1) + float(
        dataset.get("RescaleIntercept") or 0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing may leak to the user's terminal
        assert np.array_equal(read_volume(SAMPLES / name).array[0], expected)


def test_rescale_is_each_slices_own_and_whole_numbers_stay_whole(tmp_path):
    stored = smooth("i2", 0, 1000)
    write_series(
        tmp_path, stored, RescaleSlope=lambda k: str(k + 1), RescaleIntercept=lambda k: str(-100 * k)
    )
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, [stored[k] * (k + 1) - 100 * k for k in range(3)])


def test_slices_without_the_rescale_of_the_others_are_said(tmp_path):
    stored = smooth("i2", 0, 1000)
    write_series(tmp_path, stored, RescaleSlope="1", RescaleIntercept="-1024")
    assert read_volume(tmp_path).warnings == ()
    path = sorted(tmp_path.iterdir())[1]
    dataset = pydicom.dcmread(path)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.save_as(path)
    volume = read_volume(tmp_path)
    assert sorted(volume.array.min(axis=(1, 2)) - stored.min(axis=(1, 2))) == [-1024, -1024, 0]
    (note,) = volume.warnings
    assert note.startswith("1 of 3 images lack the rescale")


@pytest.mark.parametrize(
    ("field", "values"),
    [("PhotometricInterpretation", ("MONOCHROME2", "MONOCHROME1")), ("PixelRepresentation", (0, 1))],
)
def test_a_slice_whose_numbers_mean_something_else_is_said(tmp_path, field, values):
    write_series(tmp_path, smooth("u2", 0, 1000), **{field: lambda k: values[k == 1]})
    (note,) = read_volume(tmp_path).warnings
    assert note.startswith("1 of 3 images") and "may differ from slice to slice" in note


def test_a_slope_of_zero_is_not_applied_and_said(tmp_path):
    stored = smooth("i2", 0, 1000)
    write_series(tmp_path, stored, RescaleSlope="0", RescaleIntercept="5")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, stored + 5) and "RescaleSlope cannot be understood" in volume.warnings[0]


def test_a_slope_of_zero_in_one_frame_is_said(tmp_path):
    path = write_enhanced(tmp_path / "a.dcm", smooth("i2", 0, 1000), range(3), rescale=[(1, 0), (0, 0), (1, 0)])
    (note,) = read_volume(path).warnings
    assert note.startswith("The images' RescaleSlope cannot be understood and is not applied")


def table(data):
    """A table of the values from 0 on."""
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [1000, 0, 16], "HU", data
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return [item]


@pytest.mark.parametrize(
    ("data", "fields", "said"),
    [
        (np.arange(1000), {}, None),
        (np.arange(2), {}, "3 of 3 images have a table of their values .* is not applied"),
        (np.arange(1000), {"RescaleSlope": "1", "RescaleIntercept": "-1024"}, "a table .* and a rescale; the table is"),
        (np.arange(1000), {"only": 1}, "1 of 3 images have a table .* may differ from slice to slice"),
    ],
)
def test_tables_of_values_are_applied_or_said(tmp_path, data, fields, said):
    stored, only = smooth("u2", 0, 999), fields.pop("only", None)
    item = table((5 + 3 * data).astype("<u2").tobytes())
    write_series(tmp_path, stored, ModalityLUTSequence=lambda k: item if only in (None, k) else None, **fields)
    volume = read_volume(tmp_path)
    looked_up = np.array([len(data) == 1000 and only in (None, k) for k in range(3)])[:, None, None]
    assert np.array_equal(volume.array, np.where(looked_up, 5 + 3 * stored.astype(int), stored))
    assert [bool(re.search(said or "^$", note)) for note in volume.warnings] == [True] * (said is not None)


def test_fractional_rescale_gives_float32(tmp_path):
    stored = smooth("u2", 0, 30000)
    write_series(tmp_path, stored, RescaleSlope="0.0125", RescaleIntercept="-1.5", Modality="PT")
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    assert np.allclose(volume.array, stored * 0.0125 - 1.5, rtol=1e-6)


def test_values_that_leave_16_bits_are_not_cut(tmp_path):
    stored = smooth("u2", 0, 65535)
    write_series(tmp_path, stored, RescaleIntercept="-1024", RescaleSlope="1")
    assert np.array_equal(read_volume(tmp_path).array, stored.astype(int) - 1024)


@pytest.mark.parametrize("compress", [None, JPEGLSLossless])
def test_enhanced_frames_have_their_own_rescale(tmp_path, compress):
    stored = smooth("u2", 0, 4000)
    rescale = [(1, -10), (2, 0), (3, 7)]
    try:
        path = write_enhanced(tmp_path / "e.dcm", stored, (2, 0, 1), rescale=rescale, compress=compress)
    except RuntimeError as error:
        pytest.skip(str(error))
    volume = read_volume(path)
    assert np.array_equal(volume.array, [stored[k].astype(int) * s + b for k, (s, b) in enumerate(rescale)])
    assert (volume.window.low, volume.window.high) == (-160.5, 239.5)


def test_monochrome1_is_inverted_with_its_window_and_said(tmp_path):
    stored = smooth("u2", 0, 4095)
    common = {"WindowCenter": "1001", "WindowWidth": "401", "BitsStored": 12, "HighBit": 11}
    write_series(tmp_path / "as stored", stored, **common)
    write_series(tmp_path / "inverted", stored, PhotometricInterpretation="MONOCHROME1", **common)
    plain, inverted = read_volume(tmp_path / "as stored"), read_volume(tmp_path / "inverted")
    assert np.array_equal(inverted.array, 4095 - stored.astype(int))
    assert "MONOCHROME1" in inverted.warnings[0] and not plain.warnings
    # what the window showed dark it must now show bright, by the same amount
    shown = plain.window.apply(plain.array).astype(int)
    assert np.abs(shown + inverted.window.apply(inverted.array) - 255).max() <= 1


@pytest.mark.parametrize("frames", ["single", "multi"])
@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_monochrome1_is_inverted_however_it_is_compressed(tmp_path, syntax, frames):
    stored = smooth("u2", 0, 4095)[: 1 if frames == "single" else 3]
    dataset = image_dataset(stored[0] if frames == "single" else stored, 12)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    if syntax:
        try:
            dataset.compress(syntax, generate_instance_uid=False)
        except RuntimeError as error:
            pytest.skip(str(error))
    volume = read_volume(save(dataset, tmp_path / "image.dcm"))
    assert np.array_equal(volume.array, 4095 - stored.astype(int))
    assert any("MONOCHROME1" in text for text in volume.warnings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_frames_are_read_with_pydicom_2_as_slicer_5_10_has_it(tmp_path, monkeypatch, syntax):
    """By the names of pydicom 2, which are still in 3."""
    stored = smooth("i2", -1024, 2000)[:3]
    dataset = image_dataset(stored, 12)
    if syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    path = save(dataset, tmp_path / "image.dcm")
    monkeypatch.setattr(pydicom_versions, "_is_2", lambda: True)
    assert np.array_equal(read_volume(path).array, stored)


def test_monochrome1_with_rescale_and_sign(tmp_path):
    stored = smooth("i2", -2000, 2000)
    write_series(
        tmp_path,
        stored,
        PhotometricInterpretation="MONOCHROME1",
        RescaleSlope="2",
        RescaleIntercept="5",
        BitsStored=12,
        HighBit=11,
    )
    assert np.array_equal(read_volume(tmp_path).array, (-1 - stored.astype(int)) * 2 + 5)


@pytest.mark.parametrize(("pad", "modified"), [(-2000, True), (3000, True), (500, False)])
def test_padding_outside_the_images_range_becomes_its_lowest_value(tmp_path, pad, modified):
    stored = smooth("i2", 0, 1000)
    stored[:, :4] = pad
    write_series(tmp_path, stored, PixelPaddingValue=pad, RescaleIntercept="-1000", RescaleSlope="1")
    expected = stored.astype(int) - 1000
    if modified:
        expected[:, :4] = expected[:, 4:].min()
    assert np.array_equal(read_volume(tmp_path).array, expected)


def test_first_of_several_windows_from_the_middle_slice(tmp_path):
    write_series(
        tmp_path,
        smooth("i2", 0, 100),
        WindowCenter=lambda k: ["1", "2"] if k != 1 else ["40", "300"],
        WindowWidth=lambda k: ["9", "9"] if k != 1 else ["401", "1500"],
    )
    assert (read_volume(tmp_path).window.low, read_volume(tmp_path).window.high) == (-160.5, 239.5)


@pytest.mark.parametrize(("center", "width"), [("40", "0"), ("40", None), ("", ""), ("40", "1e-30")])
def test_a_useless_window_is_no_window(tmp_path, center, width):
    write_series(tmp_path, smooth("i2", 0, 100), WindowCenter=center, WindowWidth=width)
    assert read_volume(tmp_path).window is None


def rgb_dataset(channels):
    dataset = image_dataset(np.zeros(channels.shape[:2], np.uint8))
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.PixelData = channels.tobytes()
    return dataset


@pytest.mark.parametrize("compress", [None, RLELossless])
def test_grey_stored_as_rgb_is_accepted_and_colour_refused(tmp_path, compress):
    grey = smooth("u1", 0, 255)[0]
    channels = np.repeat(grey[..., None], 3, axis=-1)
    datasets = [rgb_dataset(channels)]
    channels = channels.copy()
    channels[3, 4, 0] ^= 64
    datasets.append(rgb_dataset(channels))
    if compress:
        for dataset in datasets:
            dataset.compress(compress, generate_instance_uid=False)
    assert np.array_equal(read_volume(save(datasets[0], tmp_path / "grey.dcm")).array[0], grey)
    with pytest.raises(UserError, match="in colour"):
        read_volume(save(datasets[1], tmp_path / "colour.dcm"))


@pytest.mark.parametrize("name", ["examples_palette.dcm", "SC_rgb_jpeg_dcmtk.dcm", "examples_ybr_color.dcm"])
def test_other_peoples_colour_files_are_refused_by_name_of_the_problem(name):
    if not (SAMPLES / name).exists():
        pytest.skip("this pydicom does not ship the file")
    with pytest.raises(UserError, match="in colour"):
        read_volume(SAMPLES / name)


@pytest.mark.parametrize("compress", [None, RLELossless, JPEGLSLossless])
def test_a_file_cut_off_in_its_pixels_is_left_out_and_said_with_its_place(tmp_path, compress):
    stored = smooth("u2", 0, 4000)
    write_series(tmp_path, stored, shuffle=False)
    victim = tmp_path / "001"
    if compress:
        dataset = pydicom.dcmread(victim)
        try:
            dataset.compress(compress, generate_instance_uid=False)
        except RuntimeError as error:
            pytest.skip(str(error))
        dataset.save_as(victim)
    victim.write_bytes(victim.read_bytes()[:-300])
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array[[0, 2]], stored[[0, 2]])
    assert "“001” at S 32.5 mm was left out" in volume.warnings[0]
    with pytest.raises(UserError, match="001"):
        read_volume(victim)


@pytest.mark.parametrize(("beyond", "said"), [(b"xx", False), (bytes(80), False), (b"xx" * 40, True)])
def test_rows_of_pixels_that_the_header_does_not_state_are_said(tmp_path, beyond, said):
    stored = smooth("u2", 0, 4000)
    write_series(tmp_path, stored, PixelData=lambda k: stored[k].tobytes() + beyond * (k == 1))
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, stored)
    assert [text.startswith("1 of 3 images hold more pixels") for text in volume.warnings] == [True] * said


def test_a_frame_that_the_header_does_not_state_is_refused(tmp_path):
    stored = smooth("u2", 0, 4000)
    write_series(tmp_path, stored, PixelData=lambda k: 2 * stored[k].tobytes())
    with pytest.raises(UserError, match="holds 7680 bytes of pixels, but its header states 3840"):
        read_volume(tmp_path)


@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 48), (60, 40)])
def test_a_compressed_picture_of_another_size_than_stated_is_refused(tmp_path, rows, columns):
    dataset = image_dataset(smooth("u2", 0, 4000)[0])
    try:
        dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    except RuntimeError as error:
        pytest.skip(str(error))
    dataset.Rows, dataset.Columns = rows, columns
    with pytest.raises(UserError, match=f"has 40 × 48 pixels, but its header states {columns} × {rows}"):
        read_volume(save(dataset, tmp_path / "a.dcm"))


@pytest.mark.parametrize(("rows", "columns"), [(46, 40), (48, 36)])
def test_rle_with_more_pixels_than_stated_is_refused(tmp_path, rows, columns):
    """Otherwise only the upper part of the picture would be read."""
    dataset = image_dataset(smooth("u2", 0, 4000)[0])
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.Rows, dataset.Columns = rows, columns
    with pytest.raises(UserError, match=f"has 1920 pixels, but its header states {columns} × {rows}"):
        read_volume(save(dataset, tmp_path / "a.dcm"))


def test_rle_whose_first_segment_is_empty_is_damaged(tmp_path):
    dataset = image_dataset(smooth("u2", 0, 4000)[0])
    dataset.compress(RLELossless, generate_instance_uid=False)
    header = (2).to_bytes(4, "little") + (64).to_bytes(4, "little")
    assert dataset.PixelData.count(header) == 1
    dataset.PixelData = re.sub(re.escape(header) + b"....", header + header[4:], dataset.PixelData, flags=re.DOTALL)
    with pytest.raises(UserError, match="“a.dcm”.*damaged or cut off"):
        read_volume(save(dataset, tmp_path / "a.dcm"))


def test_files_without_pixels_are_named(tmp_path):
    write_series(tmp_path, smooth("u2", 0, 4000), shuffle=False, PixelData=None)
    with pytest.raises(UserError, match="“000”.*cut off"):
        read_volume(tmp_path)
