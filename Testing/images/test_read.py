"""Reading everything that is not DICOM, and one sentence for everything that cannot be read."""

import gzip
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import read_volume

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def voxels(dtype=np.int16, shape=(3, 4, 5)):
    return np.random.default_rng(1).integers(0, 200, shape).astype(dtype)


def oblique(seed=0, spacing=(0.7, 1.2, 3.0)):
    """A RAS affine with any orientation, right- or left-handed."""
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0] * spacing
    affine[:3, 3] = (-31, 17, 42)
    return affine


def save_nifti(path, array, affine, sform=2, qform=1):
    image = nibabel.Nifti1Image(array.T, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform, strip_shears=True)
    nibabel.save(image, path)
    return path


def sitk_image(array, affine):
    image = sitk.GetImageFromArray(array)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), forms=st.sampled_from([(1, 1), (2, 0), (0, 1)]))
def test_nifti_has_the_affine_and_voxels_that_nibabel_sees(tmp_path_factory, seed, forms):
    path = save_nifti(tmp_path_factory.mktemp("n") / "a.nii.gz", voxels(), oblique(seed), *forms)
    volume = read_volume(path)
    reference = nibabel.load(path)
    assert np.array_equal(volume.array, np.asarray(reference.dataobj).T)
    assert np.allclose(volume.affine, reference.affine, atol=1e-4)
    assert np.allclose(volume.affine, oblique(seed), atol=1e-4)
    assert volume.warnings == ()


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_other_formats_keep_voxels_type_and_geometry(tmp_path, ending, dtype):
    folder = tmp_path / "Ordner mit ü und 中"
    folder.mkdir()
    path = folder / f"my image{ending}"
    sitk.WriteImage(sitk_image(voxels(dtype), oblique()), str(path))
    volume = read_volume(str(path))
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.array, voxels(dtype))
    assert np.allclose(volume.affine, oblique(), atol=1e-4)


@pytest.mark.parametrize(("dtype", "becomes"), [("int64", "int32"), ("float64", "float32")])
def test_64_bit_voxels_take_half_the_memory(tmp_path, dtype, becomes):
    sitk.WriteImage(sitk_image(voxels(dtype), oblique()), str(tmp_path / "a.nrrd"))
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.array.dtype == becomes and np.array_equal(volume.array, voxels())


def test_nifti_scaling_is_applied(tmp_path):
    image = nibabel.Nifti1Image(voxels().T, oblique())
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.allclose(read_volume(tmp_path / "a.nii").array, nibabel.load(tmp_path / "a.nii").get_fdata().T)


def test_big_endian_nifti_is_read_and_nifti_2_refused(tmp_path):
    array = voxels()
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(array.T.astype(">i2"), oblique(), header), tmp_path / "big.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "big.nii.gz").array, array)
    nibabel.save(nibabel.Nifti2Image(array.T, oblique()), tmp_path / "two.nii")
    refused(tmp_path / "two.nii", "NIfTI-2")


@pytest.mark.parametrize("qform", [0, 1])
def test_a_slightly_skew_sform_is_read_and_a_sheared_one_refused(tmp_path, qform):
    skew, sheared = np.diag([1, 1, 2, 1.0]), np.diag([1, 1, 2, 1.0])
    skew[0, 1], sheared[0, 1] = 2e-4, 0.3
    volume = read_volume(save_nifti(tmp_path / "skew.nii.gz", voxels(), skew, 1, qform))
    assert np.array_equal(volume.array, voxels())
    corner = np.array([4, 3, 2, 1])
    assert np.allclose(volume.affine @ corner, skew @ corner, atol=0.01)
    path = save_nifti(tmp_path / "sheared.nii", voxels(), sheared, 1, qform)
    refused(path, "perpendicular")
    with open(path, "r+b") as file:
        file.seek(84)
        file.write(struct.pack("<f", 1))  # its pixel size (pixdim), not the length of its column
    refused(path, "perpendicular")
    assert "ITK_NIFTI_SFORM_PERMISSIVE" not in os.environ


def turned(degrees, affine):
    """The affine after a turn about the patient's right-left axis."""
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


@pytest.mark.parametrize("codes", [(1, 2), (2, 2), (1, 1), (2, 1), (4, 3)], ids=str)
def test_two_matrices_that_differ_are_read_as_slicer_does_and_the_difference_is_said(tmp_path, codes):
    straight = np.diag([-0.8, -0.8, 2.5, 1.0])
    image = nibabel.Nifti1Image(voxels().T, straight)
    image.set_sform(turned(20, straight), codes[1])
    image.set_qform(straight, codes[0])
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    opened = sitk.ReadImage(str(tmp_path / "a.nii.gz"))  # as Slicer does
    for ijk in ((0, 0, 0), (4, 3, 2)):
        x, y, z = opened.TransformIndexToPhysicalPoint(ijk)
        assert np.allclose(volume.ijk_to_ras(ijk), (-x, -y, z), atol=1e-4)
    used = "qform" if np.allclose(volume.affine, straight, atol=1e-4) else "sform"
    (note,) = volume.warnings
    assert "20°" in note and f"{used} is used, as Slicer does" in note


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), unit=st.sampled_from([(1, 1e-3), (2, 1), (3, 1e3), (0, 1)]), forms=st.booleans())
def test_metres_and_micrometres_become_millimetres(tmp_path_factory, seed, unit, forms):
    code, factor = unit
    scale = np.diag([factor, factor, factor, 1])
    path = tmp_path_factory.mktemp("n") / "a.nii"
    image = nibabel.Nifti1Image(voxels().T, None)
    image.set_sform(scale @ oblique(seed), 2)
    image.header["xyzt_units"] = code
    image.header["pixdim"][1:4] = np.array((0.7, 1.2, 3.0)) * factor
    if forms:
        image.set_qform(scale @ oblique(seed), 1)
    nibabel.save(image, path)
    volume = read_volume(path)
    assert np.allclose(volume.affine, oblique(seed), atol=1e-4)
    assert volume.warnings == ()


def test_pixel_sizes_that_contradict_the_matrix_are_named(tmp_path):
    path = save_nifti(tmp_path / "a.nii", voxels(), np.diag([1, 1, 1, 1.0]), 1, 0)
    data = bytearray(path.read_bytes())
    data[80:92] = np.float32([0.866, 0.866, 0.796]).tobytes()
    path.write_bytes(data)
    volume = read_volume(path)
    assert np.allclose(volume.spacing, sitk.ReadImage(str(path)).GetSpacing())
    (note,) = volume.warnings
    assert "contradicts itself" in note and "0.866 × 0.866 × 0.796 mm" in note and "1 × 1 × 1 mm" in note


@pytest.mark.parametrize(("code", "factor", "unit"), [(1, 1000, "metres"), (3, 0.001, "micrometres")])
def test_a_unit_that_makes_voxels_tiny_or_huge_is_doubted(tmp_path, code, factor, unit):
    path = save_nifti(tmp_path / "a.nii", voxels(), np.diag([0.8, 0.8, 2.5, 1]), 1, 1)
    data = bytearray(path.read_bytes())
    data[123] = code
    path.write_bytes(data)
    volume = read_volume(path)
    assert np.allclose(volume.spacing, np.array((0.8, 0.8, 2.5)) * factor) and f" {unit}, which" in volume.warnings[0]


@pytest.mark.parametrize("name", ["A.NII.GZ", "A.Nii.gz", "a.nii.GZ", "A.NII", "A.NRRD", "A.NHDR", "A.MHA", "A.Mhd"])
def test_endings_are_understood_in_upper_case(tmp_path, name):
    plain = tmp_path / name.lower()
    sitk.WriteImage(sitk_image(voxels(), oblique()), str(plain))
    plain.rename(tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert np.array_equal(volume.array, voxels()) and np.allclose(volume.affine, oblique(), atol=1e-4)
    assert volume.source.files == (tmp_path / name,)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(40, 347), st.integers(0, 255), min_size=1, max_size=6))
def test_any_damage_to_a_nifti_header_is_read_or_refused_in_a_sentence(tmp_path_factory, changes):
    path = save_nifti(tmp_path_factory.mktemp("n") / "a.nii", voxels(), oblique())
    data = bytearray(path.read_bytes())
    for place, value in changes.items():
        data[place] = value
    path.write_bytes(data)
    try:
        volume = read_volume(path)
    except UserError as refusal:
        assert "\n" not in str(refusal) and any(word in str(refusal) for word in (path.name, "geometry", "axes"))
    else:
        assert np.isfinite(volume.affine).all()


def test_a_sheared_nrrd_is_refused(tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk_image(voxels(), np.eye(4)), str(path))
    text = path.read_bytes()
    start = text.index(b"space directions:")
    sheared = b"space directions: (1,0,0) (0.4,1,0) (0,0,1)"
    path.write_bytes(text[:start] + sheared + text[text.index(b"\n", start) :])
    with pytest.raises(UserError, match="perpendicular"):
        read_volume(path)


def test_nifti_without_geometry_says_so(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", voxels(), np.diag([2, 2, 2, 1]), 0, 0))
    assert "where it lies" in volume.warnings[0]
    assert np.allclose(volume.spacing, 2)


def test_one_volume_with_a_fourth_axis_of_one_is_3_d(tmp_path):
    nibabel.save(nibabel.Nifti1Image(voxels().T[..., None], oblique()), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.array, voxels())
    assert np.allclose(volume.affine, oblique(), atol=1e-4)


def test_a_two_dimensional_image_is_one_slice(tmp_path):
    image = sitk.GetImageFromArray(voxels()[0])
    image.SetSpacing((0.5, 0.25))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    volume = read_volume(tmp_path / "a.mha")
    assert np.array_equal(volume.array, voxels()[:1])
    assert np.allclose(volume.spacing, (0.5, 0.25, 1))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, ">f4"])
def test_voxels_that_are_no_numbers_become_the_lowest_value_and_are_said(tmp_path, ending, kind):
    def write(name, array):
        if ending.startswith(".nii"):
            nibabel.save(nibabel.Nifti1Image(array.T, oblique(), dtype=kind), tmp_path / name)
        else:
            sitk.WriteImage(sitk_image(array.astype(array.dtype.newbyteorder("=")), oblique()), str(tmp_path / name))
        return tmp_path / name

    array = voxels(np.float32).astype(kind)
    array[0, 0, 0], array[1, 1, 1], array[2, 3, 1] = np.nan, np.inf, -np.inf
    volume = read_volume(write(f"a{ending}", array))
    finite = np.isfinite(array)
    assert np.array_equal(volume.array[finite], array[finite]) and (~finite).sum() == 3
    assert (volume.array[~finite] == array[finite].min()).all()
    assert "3 voxels" in volume.warnings[0]
    with pytest.raises(UserError, match="no real number"):
        read_volume(write(f"b{ending}", np.full((2, 2, 2), np.nan, kind)))


def save_metaimage(path, fields, content=b""):
    header = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "1 2 3", "ElementSpacing": "2 3 4", "DimSize": "5 4 3",
        "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
    } | fields  # fmt: skip
    data = header.pop("ElementDataFile")
    text = "".join(f"{key} = {value}\n" for key, value in header.items() if value) + f"ElementDataFile = {data}\n"
    path.write_bytes(text.encode() + content)
    return path


@pytest.mark.parametrize("stated", [None, 0, 20])
def test_a_compressed_metaimage_that_itk_would_make_up_is_refused(tmp_path, stated):
    packed = zlib.compress(voxels().tobytes())
    fields = {"CompressedData": "True", "CompressedDataSize": len(packed)}
    assert np.array_equal(read_volume(save_metaimage(tmp_path / "a.mha", fields, packed)).array, voxels())
    refused(save_metaimage(tmp_path / "b.mha", fields | {"CompressedDataSize": stated}, packed), "cannot be read")
    short = zlib.compress(voxels().tobytes()[:-2])
    refused(save_metaimage(tmp_path / "c.mha", fields | {"CompressedDataSize": len(short)}, short), "cannot be read")


def test_a_metaimage_needs_a_file_for_each_slice(tmp_path):
    for k, one in enumerate(voxels()):
        (tmp_path / f"s{k}.raw").write_bytes(one.tobytes())
    for count in (3, 2):
        names = "".join(f"s{k}.raw\n" for k in range(count)).encode()
        listed = save_metaimage(tmp_path / f"list{count}.mhd", {"ElementDataFile": "LIST"}, names)
        numbered = save_metaimage(tmp_path / f"numbers{count}.mhd", {"ElementDataFile": f"s%d.raw 0 {count - 1} 1"})
        for path in (listed, numbered):
            if count == 3:
                assert np.array_equal(read_volume(path).array, voxels())
            else:
                refused(path, "names 2 files for its 3 slices")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ElementSpacing": None}, "how large its voxels are"),
        ({"TransformMatrix": None, "Offset": None}, "where it lies in the patient"),
        ({"Offset": None}, "where its first voxel lies"),
        ({"ElementToIntensityFunctionSlope": "2"}, "a scale of its values (2, offset 0)"),
    ],
)
def test_what_a_metaimage_leaves_out_is_said(tmp_path, fields, said):
    assert read_volume(save_metaimage(tmp_path / "a.mha", {}, voxels().tobytes())).warnings == ()
    (note,) = read_volume(save_metaimage(tmp_path / "b.mha", fields, voxels().tobytes())).warnings
    assert said in note


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["spacings: 2 3 4"], ["where it lies"]),
        (["space: scanner-xyz", "space directions: (2,0,0) (0,3,0) (0,0,4)"], ["where it lies"]),
        (["space: LPS", "space directions: (2,0,0) none (0,0,4)"], ["how large its voxels are", "first voxel"]),
        (["spacings: 2 3 nan"], ["how large its voxels are", "where it lies"]),
        (["space: left-anterior-superior", "space directions: (2,0,0) (0,3,0) (0,0,4)"], ["where its first voxel"]),
        (["space: LPS", "space directions: (2,0,0) (0,3,0) (0,0,4)", "space origin: (0,0,0)"], []),
        (["spacings: 2 3 -4"], ["negative size (2 3 -4)", "where it lies"]),
    ],
)
def test_what_a_nrrd_leaves_out_is_said(tmp_path, lines, said):
    header = ["NRRD0004", "type: short", "dimension: 3", "sizes: 5 4 3", "endian: little", "encoding: raw", *lines]
    (tmp_path / "a.nrrd").write_bytes("\n".join([*header, "", ""]).encode() + voxels().tobytes())
    warnings = read_volume(tmp_path / "a.nrrd").warnings
    assert len(warnings) == len(said) and all(part in note for part, note in zip(said, warnings, strict=True))


@pytest.mark.parametrize(
    ("at", "kind", "values", "said"),
    [
        (80, "f", [0], "pixel sizes (pixdim) of 0 ×"),
        (84, "f", [-1.2], "pixel sizes (pixdim) of 0.7 × -1.2 ×"),
        (88, "f", [np.nan], "× nan, which is impossible"),
        (112, "ff", [0, -1024], "an offset of values (scl_inter, -1024) without a scale"),
        (46, "h", [0], "longer than the 5 × 4 × 1 voxels"),
        (46, "h", [2], "longer than the 5 × 4 × 2 voxels"),
        (40, "h", [2], "longer than the 5 × 4 voxels"),
    ],
)
def test_what_a_nifti_header_leaves_out_is_said(tmp_path, at, kind, values, said):
    path = save_nifti(tmp_path / "a.nii", voxels(), np.diag([0.7, 1.2, 3, 1]), sform=0)
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{kind}", content, at, *values)
    path.write_bytes(content)
    assert any(said in note for note in read_volume(path).warnings)


@pytest.mark.parametrize(
    ("codes", "at", "values", "said"),
    [
        ((0, 1), 280, [np.nan], r"\(sform\) holds values that are not numbers"),
        ((1, 1), 292, [np.inf], r"\(sform\) holds values that are not numbers"),
        ((0, 1), 280, [0] * 12, r"\(sform\) gives no three directions"),
        ((1, 0), 256, [np.nan], r"\(qform\) holds values that are not numbers"),
        ((1, 0), 256, [0.9, 0.9, 0], r"\(qform\) is not a rotation"),
        ((1, 1), 344, [0], "lacks the mark of NIfTI"),
    ],
)
def test_nifti_files_that_cannot_say_where_they_lie_are_refused(tmp_path, codes, at, values, said):
    path = save_nifti(tmp_path / "a.nii", voxels(), np.diag([0.7, 1.2, 3, 1]))
    content = bytearray(path.read_bytes())
    struct.pack_into("<hh", content, 252, *codes)
    struct.pack_into(f"<{len(values)}f", content, at, *values)
    path.write_bytes(content)
    refused(path, said)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("ending", "sizes"), [(".nrrd", b"sizes: 5 4 "), (".mha", b"DimSize = 5 4 ")])
def test_slices_that_a_header_does_not_mention_are_said(tmp_path, ending, sizes, compressed):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk_image(voxels(), oblique()), str(path), compressed)
    path.write_bytes(path.read_bytes().replace(sizes + b"3", sizes + b"2"))
    volume = read_volume(path)
    assert np.array_equal(volume.array, voxels()[:2])
    assert "longer than the 5 × 4 × 2 voxels" in volume.warnings[0]


@pytest.mark.parametrize("end", ["", "\n", " 7" * 20, " 7" * 5])
@pytest.mark.parametrize("detached", [False, True])
def test_a_metaimage_in_text(tmp_path, end, detached):
    """With and without the line break at its end that ITK needs."""
    numbers = " ".join(map(str, voxels().ravel())) + end
    (tmp_path / "ä.txt").write_text(numbers, encoding="utf-8")
    path = tmp_path / "ä.mhd"
    path.write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
        "ElementSpacing = 1 1 1\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = "
        + ("ä.txt\n" if detached else f"LOCAL\n{numbers}"), encoding="utf-8"
    )  # fmt: skip
    before = path.read_bytes()
    volume = read_volume(path)
    assert np.array_equal(volume.array, voxels()) and path.read_bytes() == before
    assert ["longer than" in note for note in volume.warnings] == [True] * (end.count("7") == 20)


def test_a_metaimage_in_text_that_is_cut_off(tmp_path):
    path = tmp_path / "a.mha"
    path.write_text("NDims = 3\nBinaryData = False\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
                    + "1 " * 59)  # fmt: skip
    refused(path, r"cut off \(59 of 60 voxels\)")


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_voxels_in_a_file_whose_name_is_not_ascii(tmp_path, ending):
    sitk.WriteImage(sitk_image(voxels(), oblique()), str(tmp_path / f"Schädel 漢{ending}"))
    assert np.array_equal(read_volume(tmp_path / f"Schädel 漢{ending}").array, voxels())


def test_the_header_of_a_nifti_pair_is_refused(tmp_path):
    """ITK would return what is in memory, as the voxels lie in another file."""
    data = bytearray(save_nifti(tmp_path / "a.nii", voxels(), oblique()).read_bytes())
    data[344:348] = b"ni1\0"
    (tmp_path / "a.nii").write_bytes(data[:348])
    (tmp_path / "a.img").write_bytes(data[352:])
    refused(tmp_path / "a.nii", "voxels are in a file of their own")


@pytest.mark.parametrize("offset", [0, 348])
def test_nifti_voxels_that_would_be_read_shifted_are_refused(tmp_path, offset):
    path = save_nifti(tmp_path / "a.nii", voxels(), oblique())
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 108, offset)
    path.write_bytes(content)
    with pytest.raises(UserError, match="where its voxels begin"):
        read_volume(path)
    path.write_bytes(content[:348] + content[352:])  # a file without the four bytes that follow the header
    assert np.array_equal(read_volume(path).array, voxels())


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
def test_voxels_beyond_32_bits_are_said_to_be_too_large(tmp_path, ending):
    array = voxels(np.float64)
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = 1e300, -np.finfo(np.float64).max, np.nan
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk_image(array, oblique()), str(path))
    volume = read_volume(path)
    usable = np.abs(array) < 1e30
    assert np.array_equal(volume.array[usable], array[usable].astype(np.float32))
    assert (volume.array[~usable] == array[usable].min()).all()
    assert volume.warnings == (
        "1 voxel holds no real number; the lowest value is used there.",
        "2 voxels hold a number too large to compute with (1e+300); the lowest value is used there.",
    )


@pytest.mark.parametrize(
    ("name", "mode", "array"),
    [
        ("a.png", None, voxels(np.uint8)[0]),
        ("a.png", None, voxels(np.uint16)[0] * 300),
        ("a.PNG", None, np.repeat(voxels(np.uint8)[0][..., None], 3, axis=-1)),
        ("a.png", "LA", voxels(np.uint8)[0]),
        ("a.png", "P", voxels(np.uint8)[0]),
        ("a.png", "1", (voxels(np.uint8)[0] > 100).astype(np.uint8) * 255),
    ],
    ids=["8 bit", "16 bit", "equal colours", "transparency", "palette", "1 bit"],
)
def test_grey_pictures_are_one_slice_of_1_mm(tmp_path, name, mode, array):
    picture = Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(tmp_path / name)
    volume = read_volume(tmp_path / name)
    expected = array if array.ndim == 2 else array[..., 0]
    assert np.array_equal(volume.array, expected[None])
    assert volume.array.dtype == expected.dtype
    assert np.array_equal(volume.affine, LPS)
    assert "1 mm" in volume.warnings[0]


def test_grey_jpeg_is_read_and_colours_are_refused(tmp_path):
    i, j = np.indices((32, 32))
    grey = (4 * i + 3 * j).astype(np.uint8)
    Image.fromarray(grey).convert("RGB").save(tmp_path / "grey.jpg", quality=95)
    assert np.abs(read_volume(tmp_path / "grey.jpg").array[0].astype(int) - grey).max() < 12
    colour = np.stack([grey, grey[::-1], grey.T], axis=-1)
    Image.fromarray(colour).save(tmp_path / "colour.jpg")
    Image.fromarray(colour).save(tmp_path / "colour.png")
    for name in ("colour.jpg", "colour.png"):
        with pytest.raises(UserError, match="colour"):
            read_volume(tmp_path / name)


def refused(path, match):
    """The one sentence with which `path` is refused."""
    with pytest.raises(UserError, match=match) as refusal:
        read_volume(path)
    text = str(refusal.value)
    assert "\n" not in text and "Traceback" not in text and "ITK" not in text
    return text


def test_4_d_and_colour_volumes_are_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 3, 6), np.int16), oblique()), tmp_path / "4d.nii.gz")
    assert "6 volumes" in refused(tmp_path / "4d.nii.gz", "4-D")
    vectors = sitk.GetImageFromArray(voxels(np.uint8, (2, 3, 4, 3)), isVector=True)
    sitk.WriteImage(vectors, str(tmp_path / "colour.nrrd"))
    refused(tmp_path / "colour.nrrd", "colours or vectors")
    grey = sitk.GetImageFromArray(np.repeat(voxels(np.uint8)[..., None], 3, axis=-1), isVector=True)
    sitk.WriteImage(grey, str(tmp_path / "grey.nrrd"))
    assert np.array_equal(read_volume(tmp_path / "grey.nrrd").array, voxels())


@pytest.mark.parametrize("cut", [60, 200])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".jpg"])
def test_truncated_files_are_refused(tmp_path, ending, cut):
    path = tmp_path / f"image{ending}"
    noise = np.random.default_rng(2).integers(0, 255, (40, 40)).astype(np.uint8)
    if ending in (".png", ".jpg"):
        Image.fromarray(noise).save(path)
    else:
        sitk.WriteImage(sitk_image(noise[None].astype(np.int16), np.eye(4)), str(path))
    path.write_bytes(path.read_bytes()[:-cut])
    refused(path, "cut off")


@pytest.mark.parametrize(
    ("ending", "field", "said"),
    [
        (".nrrd", 'space units: "mm" "mm" "mm"', ""),
        (".nrrd", 'space units: "cm" "cm" "cm"', "in cm"),
        (".nrrd", 'space units: "microns" "microns" "mm"', "in microns"),
        (".mha", "DistanceUnits = mm", ""),
        (".mha", "DistanceUnits = um", "in um"),
    ],
)
def test_units_that_are_ignored_are_said(tmp_path, ending, field, said):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk_image(voxels(), oblique()), str(path))
    before = b"encoding:" if ending == ".nrrd" else b"DimSize"
    path.write_bytes(path.read_bytes().replace(before, field.encode() + b"\n" + before, 1))
    volume = read_volume(path)
    assert np.array_equal(volume.array, voxels()) and np.allclose(volume.affine, oblique(), atol=1e-4)
    assert bool(volume.warnings) == bool(said) and all(said in text for text in volume.warnings)


@pytest.mark.parametrize(("at", "kind", "value"), [(72, "<i2", 0), (72, "<i2", 1), (108, "<f4", 0), (46, "<i2", 0)])
def test_truncated_nifti_files_with_a_careless_header_are_refused(tmp_path, at, kind, value):
    """Bits of a voxel, the voxels' place in the file, and the length of the axis of one slice."""
    array = np.random.default_rng(4).integers(-1000, 1000, (1, 30, 40)).astype(np.int16)
    path = save_nifti(tmp_path / "a.nii", array, np.eye(4))
    content = bytearray(path.read_bytes())
    number = np.array(value, kind).tobytes()
    content[at : at + len(number)] = number
    if at == 108:  # voxels directly behind the header
        del content[348:352]
    path.write_bytes(content)
    assert np.array_equal(read_volume(path).array, array)
    path.write_bytes(content[:-300])
    refused(path, "cut off")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_compressed_voxels_that_are_damaged_anywhere_are_refused(tmp_path, ending):
    path = tmp_path / f"image{ending}"
    noise = np.random.default_rng(3).integers(0, 255, (4, 30, 30)).astype(np.uint8)
    sitk.WriteImage(sitk_image(noise, np.eye(4)), str(path), useCompression=True)
    assert np.array_equal(read_volume(path).array, noise)
    voxels_in = next((file for file in tmp_path.iterdir() if file != path), path)
    whole = voxels_in.read_bytes()
    start = whole.find(b"LOCAL") + 6 if ending == ".mha" else whole.find(b"\n\n") + 2 if ending == ".nrrd" else 0
    for place in [*np.linspace(start + 15, len(whole) - 9, 12).astype(int), len(whole) - 2]:
        damaged = bytearray(whole)
        damaged[place] ^= 4
        voxels_in.write_bytes(damaged)
        refused(path, "damaged|unlike its ending|type that is not supported")


@pytest.mark.parametrize(
    "ending", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".dcm", ".txt"]
)
def test_empty_missing_and_wrong_files_are_refused(tmp_path, ending):
    path = tmp_path / f"image{ending}"
    refused(path, "does not exist")
    path.write_bytes(b"")
    refused(path, "is empty")
    path.write_bytes(b"this is not an image, whatever its name says " * 20)
    refused(path, "not what its ending|not an image that can be|without an image")
    path.write_bytes(bytes(range(256)) * 4)
    refused(path, "not what its ending|not an image that can be|without an image")


def test_gzip_that_is_no_nifti_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"hello" * 300))
    refused(tmp_path / "a.nii.gz", "not what its ending says")


def test_nifti_files_that_are_not_called_damaged(tmp_path):
    whole = save_nifti(tmp_path / "a.nii", voxels(), oblique()).read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(whole)
    refused(tmp_path / "plain.nii.gz", "not compressed, unlike its ending; rename it to “plain.nii”")
    (tmp_path / "packed.nii").write_bytes(gzip.compress(whole))
    refused(tmp_path / "packed.nii", "compressed with gzip, unlike its ending; rename it to “packed.nii.gz”")
    nibabel.save(nibabel.Nifti2Image(voxels().T, oblique()), tmp_path / "b.nii")
    refused(tmp_path / "b.nii", "NIfTI-2 file, which is not supported")
    for kind in (0, 1, 1536):  # unknown, bits, 128-bit floats
        (tmp_path / "a.nii").write_bytes(whole[:70] + kind.to_bytes(2, "little") + whole[72:])
        refused(tmp_path / "a.nii", rf"type that is not supported \(datatype {kind}\)")


@pytest.mark.parametrize(
    ("ending", "before", "now", "said"),
    [
        (".nrrd", b"encoding: raw", b"encoding: bzip2", "in the encoding “bzip2”, which is not supported"),
        (".nrrd", b"encoding: raw", b"Encoding: ZRL", "in the encoding “ZRL”, which is not supported"),
        (".nrrd", b"type: short", b"type: block", "of the type “block”, which is not supported"),
        (".mha", b"MET_SHORT", b"MET_HALF", "of the type “MET_HALF”, which is not supported"),
    ],
)
def test_voxels_that_itk_cannot_read_are_not_called_damaged(tmp_path, ending, before, now, said):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk_image(voxels(), oblique()), str(path))
    whole = path.read_bytes()
    assert before in whole
    path.write_bytes(whole.replace(before, now))
    refused(path, said)


def test_the_fields_of_a_nrrd_may_be_in_capitals(tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk_image(voxels(), oblique()), str(path), useCompression=True)
    path.write_bytes(path.read_bytes().replace(b"\nencoding:", b"\nEncoding:").replace(b"\nspace", b"\nSpace"))
    volume = read_volume(path)
    assert np.array_equal(volume.array, voxels()) and volume.warnings == ()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_a_header_without_its_data_file_names_it(tmp_path, ending, compressed):
    sitk.WriteImage(sitk_image(voxels(), oblique()), str(tmp_path / f"a{ending}"), compressed)
    (data,) = (file for file in tmp_path.iterdir() if file.suffix != ending)
    data.unlink()
    refused(tmp_path / f"a{ending}", f"voxels in “{data.name}”, which is not there")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_files_that_may_not_be_read_are_refused(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", voxels(), oblique())
    path.chmod(0)
    refused(path, "permissions")


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no named pipes")
def test_a_pipe_is_called_one(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    refused(tmp_path / "a.nii.gz", "is a pipe or a device")


def test_reading_changes_nothing_on_disk(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", voxels(), oblique())
    before = path.read_bytes()
    read_volume(path)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real images is absent")
def test_real_nifti_and_png_agree_with_nibabel_and_pillow(tmp_path):
    for path in sorted((DATA / "hippocampus-mri" / "images").glob("*.nii.gz"))[:5]:
        volume, reference = read_volume(path), nibabel.load(path)
        assert np.array_equal(volume.array, np.asarray(reference.dataobj).T)
        assert np.allclose(volume.affine, reference.affine, atol=1e-5)
    picture = next((DATA / "prostate-mri-5shot").rglob("*.png"))
    shutil.copy(picture, tmp_path / "slice one.png")
    with Image.open(picture) as opened:
        assert np.array_equal(
            read_volume(tmp_path / "slice one.png").array[0], np.asarray(opened.convert("L"))
        )


@pytest.mark.parametrize(("name", "changing"), [("a.nii", "a.nii"), ("a.mhd", "a.raw"), ("a.nhdr", "a.raw")])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, name, changing):
    """As when another program copies it anew: ITK reads zeros where voxels are missing from NIfTI."""
    path = tmp_path / name
    sitk.WriteImage(sitk_image(voxels(np.uint8, (9, 20, 20)), np.eye(4)), str(path))
    read = sitk.ImageFileReader.Execute

    def change_then_read(reader):
        if name == changing:
            os.truncate(path, 400)
        os.utime(tmp_path / changing, (1, 1))
        return read(reader)

    monkeypatch.setattr(sitk.ImageFileReader, "Execute", change_then_read)
    with pytest.raises(UserError, match="changed while it was read"):
        read_volume(path)


@pytest.mark.parametrize(
    ("name", "old", "new"), [("a.mha", b"DimSize", b"Dim"), ("a.nii", b"\x03\0\5\0", b"\x03\0\xff\xff")]
)
def test_itk_says_nothing_itself_about_a_damaged_file(tmp_path, capfd, name, old, new):
    sitk.WriteImage(sitk_image(voxels(), np.eye(4)), str(tmp_path / name))
    data = (tmp_path / name).read_bytes()
    assert old in data
    (tmp_path / name).write_bytes(data.replace(old, new, 1))
    with pytest.raises(UserError):
        read_volume(tmp_path / name)
    assert capfd.readouterr() == ("", "")
