"""Label files are read as their writers meant them: Slicer's own storage, highdicom and the pixels of pictures are the
references. What is mended is said with numbers, what cannot mean labels is refused.
"""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from case_files import AFFINE, blob, image_of, save
from PIL import Image

from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cases.label_grid import fit_labels
from SAMFineTuneLib.cases.label_map import overlaid
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import read_volume, write_dicom_series
from SAMFineTuneLib.images.volume import Volume

SHAPE = (4, 10, 12)


def held(labels, array=None):
    """The voxels of every label by its name."""
    array = labels.array if array is None else array
    values = np.unique(array).tolist()
    names = labels.meaning.names or {label: label for label in labels.meaning.labels_in(values)}
    return {
        name: np.isin(array, [value for value in values if label in labels.meaning.labels_of(value)])
        for label, name in names.items()
    }


def counts(labels):
    return {name: int(mask.sum()) for name, mask in held(labels).items()}


# ---- overlaps


def test_overlapping_masks_keep_all_their_voxels():
    rng = np.random.default_rng(0)
    masks = {label: rng.random((3, 4, 5)) < 0.4 for label in (1, 2, 7)}
    array, members = overlaid(masks.items(), (3, 4, 5), 8)
    for label, mask in masks.items():
        own = [value for value in np.unique(array) if label in members.get(int(value), (value,))]
        assert np.array_equal(np.isin(array, own), mask)
    assert not set(members) & {0, 1, 2, 7}


# ---- Slicer segmentations


def write_nrrd(path, array, fields, list_first=True):
    """A `.seg.nrrd` of an array [k, j, i] or [k, j, i, layer] with exactly these fields."""
    axes = "(0.8,0,0) (0,0.8,0) (0,0,2.5)"
    layered = array.ndim == 4
    data = np.moveaxis(array, -1, 0) if layered and not list_first else array
    directions, kinds = axes, "domain domain domain"
    if layered:
        directions = f"none {axes}" if list_first else f"{axes} none"
        kinds = f"list {kinds}" if list_first else f"{kinds} list"
    lines = [
        "NRRD0004", "type: unsigned char", f"dimension: {array.ndim}", "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, data.shape[::-1]))}", f"space directions: {directions}", f"kinds: {kinds}",
        "endian: little", "encoding: raw", "space origin: (-40,-50,-30)",
        *(f"{key}:={value}" for key, value in fields.items()),
    ]  # fmt: skip
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + np.ascontiguousarray(data, np.uint8).tobytes())
    return path


def segments(*described):
    """Fields of segments, each a dictionary such as {"Name": "liver", "Layer": 0}."""
    fields = {}
    for n, one in enumerate(described):
        fields |= {f"Segment{n}_{key}": value for key, value in {"Extent": "0 11 0 9 0 3", **one}.items()}
    return fields


def two_organs():
    liver, tumour = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    liver[1:3, 2:6, 3:9], tumour[1:3, 4:8, 3:5] = 1, 1
    return liver, tumour


LIVER, TUMOUR = {"ID": "S_1", "Name": "liver"}, {"ID": "S_2", "Name": "tumour"}
LAYERED = {
    "Slicer up to 4.10": segments(LIVER, TUMOUR),
    "no names": segments({"ID": "S_1"}, {"ID": "S_2"}),
    "today's": segments({**LIVER, "LabelValue": 1, "Layer": 0}, {**TUMOUR, "LabelValue": 1, "Layer": 1}),
    "layers the other way": segments({**LIVER, "LabelValue": 1, "Layer": 1}, {**TUMOUR, "LabelValue": 1, "Layer": 0}),
    "values without layers": segments({**LIVER, "LabelValue": 1}, {**TUMOUR, "LabelValue": 1}),
    "layers without values": segments({**LIVER, "Layer": 1}, {**TUMOUR, "Layer": 0}),
    "one of two layers named": segments({**LIVER, "LabelValue": 1, "Layer": 0}, TUMOUR),
}


def in_slicer(path):
    """Names and voxels of the segments that Slicer's own storage makes of a file."""
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    from vtk.util.numpy_support import vtk_to_numpy

    scene = slicer.vtkMRMLScene()
    node, storage = scene.AddNewNodeByClass("vtkMRMLSegmentationNode"), slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    found = {}
    for n in range(node.GetSegmentation().GetNumberOfSegments()):
        segment = node.GetSegmentation().GetNthSegment(n)
        voxels = vtk_to_numpy(segment.GetRepresentation("Binary labelmap").GetPointData().GetScalars())
        found[segment.GetName()] = int((voxels == segment.GetLabelValue()).sum())
    return found


@pytest.mark.parametrize("list_first", [True, False])
@pytest.mark.parametrize("kind", LAYERED)
def test_layers_are_whose_slicer_says(tmp_path, kind, list_first):
    path = write_nrrd(tmp_path / "x.seg.nrrd", np.stack(two_organs(), -1), LAYERED[kind], list_first)
    assert counts(read_labels(path)) == in_slicer(path)


def test_an_old_segmentation_of_overlapping_segments(tmp_path):
    liver, tumour = two_organs()
    path = write_nrrd(tmp_path / "x.seg.nrrd", np.stack((liver, tumour), -1), LAYERED["Slicer up to 4.10"])
    found = held(read_labels(path))
    assert np.array_equal(found["liver"], liver > 0) and np.array_equal(found["tumour"], tumour > 0)


def test_layers_about_which_nothing_is_said(tmp_path):
    path = write_nrrd(tmp_path / "x.seg.nrrd", np.stack(two_organs(), -1), {})
    assert list(counts(read_labels(path)).values()) == [48, 16] == list(in_slicer(path).values())


def test_one_layer_with_values_in_any_order(tmp_path):
    liver, tumour = two_organs()
    both = np.where(tumour, 1, 2 * liver)
    fields = segments({**LIVER, "LabelValue": 2, "Layer": 0}, {**TUMOUR, "LabelValue": 1, "Layer": 0})
    path = write_nrrd(tmp_path / "x.seg.nrrd", both, fields)
    assert counts(read_labels(path)) == in_slicer(path) == {"liver": 40, "tumour": 16}
    del fields["Segment0_Layer"], fields["Segment1_Layer"]  # Slicer then loses the second, of which nothing is unclear
    assert counts(read_labels(write_nrrd(path, both, fields))) == {"liver": 40, "tumour": 16}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (segments({**LIVER, "LabelValue": 0, "Layer": 0}, TUMOUR), "“liver” the value 0, which is not a label"),
        (segments({**LIVER, "LabelValue": "one"}, TUMOUR), "“liver” no usable value"),
        (segments({**LIVER, "Layer": 0}, {**TUMOUR, "Layer": 0}), "“liver” and “tumour” the same value"),
        (segments(LIVER, TUMOUR, {"ID": "S_3", "Name": "vein"}), "“vein”, but holds no layer"),
        (segments(LIVER, {**TUMOUR, "LabelValue": 1, "Layer": 5}), "“tumour”, but holds no layer"),
    ],
)
def test_segments_that_cannot_be_told_apart_are_refused(tmp_path, fields, match):
    with pytest.raises(UserError, match=match):
        read_labels(write_nrrd(tmp_path / "x.seg.nrrd", np.stack(two_organs(), -1), fields))


def test_voxels_of_no_segment_are_left_out_and_counted(tmp_path):
    liver, tumour = two_organs()
    path = write_nrrd(tmp_path / "x.seg.nrrd", np.stack((liver, 255 * tumour), -1), LAYERED["Slicer up to 4.10"])
    labels = read_labels(path)
    assert counts(labels) == in_slicer(path) == {"liver": 48, "tumour": 0}
    assert labels.notes == ("Left out, as the file names no segment for them: 16 voxels of the labels.",)


def test_a_segmentations_header_is_checked_as_an_images_is(tmp_path):
    liver, tumour = two_organs()
    path = write_nrrd(tmp_path / "x.seg.nrrd", np.stack((liver, tumour), -1), LAYERED["Slicer up to 4.10"])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\nspace directions", b'\nspace units: "cm" "cm" "cm"\nspace directions'))
    assert "gives its lengths in cm" in read_labels(path).notes[0]
    path.write_bytes(whole.replace(b"(0,0.8,0)", b"(0.3,0.8,0)"))
    with pytest.raises(UserError, match="not perpendicular"):
        read_labels(path)


# ---- DICOM SEG


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A tilted DICOM series."""
    turn = np.deg2rad(20)
    axes = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes @ np.diag([-0.8, -0.9, 2.5]), (10, 20, -30)
    folder = tmp_path_factory.mktemp("series") / "ct"
    write_dicom_series(Volume(np.random.default_rng(0).integers(0, 500, (6, 20, 24)).astype(np.int16), affine), folder)
    return read_volume(folder)


def seg_file(path, volume, array, kind="BINARY", change=None, **settings):
    """A DICOM SEG by highdicom of an array [k, j, i] of numbers or [k, j, i, segment]."""
    hd = pytest.importorskip("highdicom")
    import pydicom
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(volume.source.files[place]) for place, _ in volume.source.slices]
    described = [
        hd.seg.SegmentDescription(n, f"part {n}", codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
        for n in range(1, (array.shape[-1] if array.ndim == 4 else int(array.max())) + 1)
    ]
    seg = hd.seg.Segmentation(
        source_images=sources, pixel_array=array, segmentation_type=kind, segment_descriptions=described,
        series_instance_uid=hd.UID(), series_number=1, sop_instance_uid=hd.UID(), instance_number=1, manufacturer="x",
        manufacturer_model_name="x", software_versions="1", device_serial_number="1", **settings,
    )  # fmt: skip
    if change is not None:
        change(seg)
    seg.save_as(path)
    return path


def parts(*slices):
    """Masks [k, j, i, 2] of two overlapping segments on these slices each."""
    masks = np.zeros((6, 20, 24, 2), np.uint8)
    masks[list(slices[0]), 3:10, 4:12, 0] = 1
    masks[list(slices[1]), 8:15, 10:20, 1] = 1
    return masks


def same(path, volume, masks):
    labels = read_labels(path)
    found = held(labels, fit_labels(labels, volume).array)
    for n in range(masks.shape[-1]):
        assert np.array_equal(found[f"part {n + 1}"], masks[..., n] > 0), f"part {n + 1}"
    return labels


def without(*names):
    def change(seg):
        groups = [*seg.SharedFunctionalGroupsSequence, *seg.PerFrameFunctionalGroupsSequence]
        for item in (seg, *(one.PixelMeasuresSequence[0] for one in groups if "PixelMeasuresSequence" in one)):
            for name in names:
                if name in item:
                    delattr(item, name)

    return change


@pytest.mark.parametrize("omit", [True, False])
@pytest.mark.parametrize("change", [None, without("NumberOfFrames"), without("SliceThickness", "SpacingBetweenSlices")])
@pytest.mark.parametrize("slices", [((1, 2, 3), (2, 3)), ((0, 3), (5,))])
def test_binary_segments_overlapping_and_with_frames_left_out(tmp_path, series, slices, change, omit):
    masks = parts(*slices)
    same(seg_file(tmp_path / "x.dcm", series, masks, change=change, omit_empty_frames=omit), series, masks)


@pytest.mark.parametrize("change", [None, without("NumberOfFrames")])
def test_a_single_frame(tmp_path, series, change):
    masks = parts((3,), ())[..., :1]
    same(seg_file(tmp_path / "x.dcm", series, masks, change=change), series, masks)


@pytest.mark.parametrize("kind", ["PROBABILITY", "OCCUPANCY"])
@pytest.mark.parametrize("largest", [255, 100])
def test_fractions_count_from_half_of_the_largest_value_on(tmp_path, series, kind, largest):
    fractions = np.random.default_rng(1).random((6, 20, 24, 2)).astype(np.float32)
    path = seg_file(
        tmp_path / "x.dcm", series, fractions, "FRACTIONAL", fractional_type=kind, max_fractional_value=largest
    )
    stored = np.around(fractions * largest)
    labels = same(path, series, stored / largest >= 0.5)
    count, above = (stored[..., 0] / largest >= 0.5).sum(), (stored[..., 0] > 0).sum()
    assert labels.notes[0] == (
        f"“part 1” is stored as {kind.lower()}: {count} of {above} voxels above 0 reach half of the largest value "
        f"({largest}), and these count."
    )


@pytest.mark.parametrize("change", [None, without("NumberOfFrames")])
def test_a_label_map_segmentation(tmp_path, series, change):
    masks = parts((1, 2), (4,))
    path = seg_file(tmp_path / "x.dcm", series, masks[..., 0] + 2 * masks[..., 1], "LABELMAP", change)
    same(path, series, masks)


def test_frames_off_any_grid_are_refused(tmp_path, series):
    def shift(seg):
        place = seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient
        place[2] = float(place[2]) + 0.7

    with pytest.raises(UserError, match="do not lie on one regular grid"):
        read_labels(seg_file(tmp_path / "x.dcm", series, parts((1, 2, 3), ())[..., :1], change=shift))


@pytest.mark.parametrize("left", [200, 1000, 0.5, -40])
def test_a_segmentation_that_was_cut_off(tmp_path, series, left):
    whole = seg_file(tmp_path / "x.dcm", series, parts((1, 2), (2,))).read_bytes()
    (tmp_path / "x.dcm").write_bytes(whole[: int(left * len(whole)) if left == 0.5 else left])
    with pytest.raises(UserError, match="“x.dcm” is a DICOM SEG that cannot be read"):
        read_labels(tmp_path / "x.dcm")


def test_two_segmentations_in_one_folder(tmp_path, series):
    for name in ("a.dcm", "b.dcm"):
        seg_file(tmp_path / name, series, parts((1, 2), (2,)))
    with pytest.raises(UserError, match="holds 2 DICOM SEG files"):
        read_labels(tmp_path)


def test_without_highdicom_the_sentence_names_the_command(tmp_path, series, monkeypatch):
    path = seg_file(tmp_path / "x.dcm", series, parts((1, 2), (2,)))
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(UserError, match=r'pip install "samfinetune\[dicom-seg\]"'):
        read_labels(path)


# ---- plain label maps


def floats(path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_noise_on_whole_numbers_is_rounded_and_said(tmp_path, kind):
    labels = blob(value=2)
    found = read_labels(floats(tmp_path / "x.nii.gz", labels.astype(kind) * kind(0.9999999)))
    assert np.array_equal(found.array, labels)
    (note,) = [note for note in found.notes if "Rounded" in note]
    assert note.startswith(f"Rounded to whole numbers: {np.count_nonzero(labels)} voxels of the labels, by up to 2")


@pytest.mark.parametrize("kind", [np.int16, np.int64, np.float32, np.float64, np.uint32])
def test_whole_numbers_of_any_type_are_labels(tmp_path, kind):
    found = read_labels(floats(tmp_path / "x.nii.gz", 300 * blob().astype(kind)))
    assert np.array_equal(found.array, 300 * blob().astype(int)) and not any("Rounded" in one for one in found.notes)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (0.5 * blob(), "holds fractions .0.5 for one, in 596 voxels"),
        (blob().astype(np.float32) * 0.98, "holds fractions"),
        (-1 * blob().astype(np.int16), "from -1 to 0 that are not labels"),
        (70_000 * blob().astype(np.int32), "from 0 to 70000 that are not labels.*whole numbers from 0 to 65535"),
        (np.arange(6 * 32 * 32, dtype=np.int16).reshape(6, 32, 32), "different values, as an image does"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path, array, match):
    with pytest.raises(UserError, match=match):
        read_labels(floats(tmp_path / "x.nii.gz", array))


@pytest.mark.parametrize("everywhere", [False, True])
def test_nan_among_labels_is_background_and_said(tmp_path, everywhere):
    labels = blob().astype(np.float32)
    unlabelled = labels == 0
    if not everywhere:
        unlabelled[1:] = False
    labels[unlabelled] = np.nan
    found = read_labels(floats(tmp_path / "x.nrrd", labels))
    assert np.array_equal(found.array, blob())
    assert any(f"{unlabelled.sum()} voxels hold no real number" in note for note in found.notes)


# ---- pictures


def test_pictures_of_every_kind_of_grey(tmp_path):
    mask = blob()[2]
    palette = Image.fromarray(2 * mask, "P")
    palette.putpalette([0, 0, 0, 10, 20, 30, 255, 0, 0])
    written = {
        "grey": (Image.fromarray(3 * mask), 3),
        "sixteen bits": (Image.fromarray(3 * mask.astype(np.uint16)), 3),
        "one bit": (Image.fromarray(255 * mask).convert("1"), 255),
        "palette": (palette, 2),
        "grey as colours": (Image.fromarray(np.stack([4 * mask] * 3, -1)), 4),
        "grey with transparency": (Image.fromarray(np.stack([4 * mask] * 3 + [0 * mask + 255], -1)), 4),
    }
    for name, (picture, value) in written.items():
        picture.save(tmp_path / f"{name}.png")
        found = read_labels(tmp_path / f"{name}.png")
        assert np.array_equal(found.array[0], value * mask.astype(np.uint16)), name
        assert not found.placed and not found.notes


def test_pictures_that_hold_no_labels(tmp_path):
    mask = blob()[2]
    Image.fromarray(np.stack([255 * mask, 0 * mask, 0 * mask], -1)).save(tmp_path / "red.png")
    Image.fromarray(np.stack([0 * mask] * 3 + [255 * mask], -1)).save(tmp_path / "clear.png")
    Image.fromarray(image_of(blob())[2].astype(np.uint8)).save(tmp_path / "photo.jpg")
    for name, match in (("red.png", "picture in colours"), ("clear.png", "transparency"), ("photo.jpg", "is a JPEG")):
        with pytest.raises(UserError, match=match):
            read_labels(tmp_path / name)


def test_a_mask_as_jpeg_is_black_and_white_again(tmp_path):
    mask = blob((6, 128, 128), (60, 64), 30)[2]
    Image.fromarray(255 * mask).save(tmp_path / "x.jpg", quality=95)
    changed = np.asarray(Image.open(tmp_path / "x.jpg"))
    found = read_labels(tmp_path / "x.jpg")
    assert np.array_equal(found.array[0] > 0, mask > 0) and set(np.unique(found.array)) == {0, 255}
    assert f"changed {int(((changed > 0) & (changed < 255)).sum())} pixels" in found.notes[0]


# ---- the image's grid


def fitted(tmp_path, labels, affine, image_affine=AFFINE, match="", shape=None):
    save(tmp_path / "image.nrrd", image_of(np.zeros(shape or (6, 32, 32), np.uint8)), image_affine)
    save(tmp_path / "labels.nrrd", labels, affine)
    return fit_labels(read_labels(tmp_path / "labels.nrrd"), read_volume(tmp_path / "image.nrrd"), match)


def moved_by(mm, affine=AFFINE):
    away = affine.copy()
    away[0, 3] += mm
    return away


@pytest.mark.parametrize("mm", [16.0, 2.0, 1.0, 500.0])
def test_labels_of_one_size_elsewhere_are_asked_about(tmp_path, mm):
    with pytest.raises(UserError, match=f"lie {mm:.1f} mm away .*--match-labels index .*--match-labels position"):
        fitted(tmp_path, blob(), moved_by(mm))
    by_index = fitted(tmp_path, blob(), moved_by(mm), match="index")
    assert np.array_equal(by_index.array, blob()) and f"{mm:.1f} mm" in by_index.notes[0]


def test_labels_matched_by_position(tmp_path):
    found = fitted(tmp_path, blob(), moved_by(4.0), match="position")
    # The columns go to the patient's left, so that labels 4 mm further to the right are 4 columns lower.
    assert np.array_equal(found.array[:, :, :-4], blob()[:, :, 4:])
    assert "4.0 mm from the image's voxels" in found.notes[0]


@pytest.mark.parametrize("identity", [np.eye(4), np.diag([-1.0, -1.0, 1.0, 1.0])])
@pytest.mark.parametrize("lost", ["labels", "image"])
@pytest.mark.parametrize("cropped", [False, True])
def test_an_identity_matrix_beside_a_real_one_is_asked_about(tmp_path, identity, lost, cropped):
    real = moved_by(30.0)
    labels = blob()[:, 2:-2] if cropped else blob()
    affines = (identity, real) if lost == "labels" else (real, identity)
    with pytest.raises(UserError, match=f"the file of the {lost} holds no geometry of its own.*--match-labels"):
        fitted(tmp_path, labels, *affines)


def test_less_than_a_voxel_apart_is_resampled_and_said(tmp_path):
    found = fitted(tmp_path, blob(), moved_by(0.4))
    assert np.array_equal(found.array, blob())
    assert "resampled onto the image's grid" in found.notes[0] and "1.49 mL became 1.49 mL" in found.notes[0]


def test_noise_in_the_matrix_is_nothing(tmp_path):
    assert fitted(tmp_path, blob(), moved_by(0.01)).notes == ()


def test_other_spacing_is_resampled_with_millilitres(tmp_path):
    fine = blob((6, 64, 64), (30.5, 34.5), 14)
    affine = AFFINE @ np.diag([0.5, 0.5, 1, 1])
    affine[:3, 3] = AFFINE[:3, :3] @ (-0.25, -0.25, 0)
    found = fitted(tmp_path, fine, affine)
    # SimpleITK's resampling onto the same grid is the reference.
    grid = sitk.ReadImage(str(tmp_path / "image.nrrd"))
    expected = sitk.Resample(sitk.ReadImage(str(tmp_path / "labels.nrrd")), grid, sitk.Transform(),
                             sitk.sitkNearestNeighbor)  # fmt: skip
    assert np.array_equal(found.array, sitk.GetArrayFromImage(expected))
    before, after = fine.sum() * 0.25 * 2.5 / 1000, found.array.sum() * 2.5 / 1000
    assert f"{before:.2f} mL became {after:.2f} mL" in found.notes[0]


def test_axes_in_another_order_are_turned_without_loss(tmp_path):
    labels = blob(centre=(12.0, 20.0))
    turned = np.transpose(labels, (2, 0, 1))  # stored [i, k, j]
    affine = AFFINE[:, [1, 2, 0, 3]]
    found = fitted(tmp_path, turned, affine)
    assert np.array_equal(found.array, labels) and "turned without loss" in found.notes[0]


def test_labels_that_reach_beyond_the_image_are_counted(tmp_path):
    labels = blob((6, 32, 32), (15, 9), 7)
    affine = AFFINE.copy()
    affine[:3, 3] = AFFINE[:3, :3] @ (-6, 0, 0)
    found = fitted(tmp_path, np.pad(labels, ((0, 0), (0, 0), (0, 6))), affine)
    outside = int(labels[:, :, :6].sum())
    assert np.array_equal(found.array[:, :, :26], labels[:, :, 6:])
    assert found.notes == (
        "The labels have 38 × 32 × 6 voxels, the image 32 × 32 × 6: check that they belong together; voxels without "
        "labels count as background.",
        f"Left out, as outside the image: {outside} of {labels.sum()} labelled voxels.",
    )
