"""Cases are found as people keep them, read into one grid, and refused in a sentence when they cannot teach."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from case_files import AFFINE, blob, case_folder, image_of, save
from dicom_samples import write_enhanced, write_series
from PIL import Image

from SAMFineTuneLib.cases.case_survey import survey
from SAMFineTuneLib.cases.cases import find_cases
from SAMFineTuneLib.cases.labelled_case import LabelChoice, read_labelled
from SAMFineTuneLib.cases.splits import require_separate, set_aside, split
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import SegmentInfo, body_phantom, read_volume, write_dicom_series, write_labelmap


def ids(cases):
    return [case.id for case in cases]


def pictures(folder, names, value=255, kind="masks"):
    for number, name in enumerate(names):
        mask = blob(centre=(15 + number, 17))[2]
        for place, array in (("images", image_of(mask, number)), (kind, mask * value)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(folder / place / f"{name}.png")
    return folder


# ---- where cases come from


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_pairs_of_one_name(tmp_path, ending):
    cases = find_cases(case_folder(tmp_path, ending=ending))
    assert ids(cases) == ["a", "b", "c"]
    volume, labels, meaning, notes = cases[0].read()
    assert labels.shape == volume.shape and set(np.unique(labels)) == {0, 1} and not meaning.names and not notes


def test_pictures_with_masks(tmp_path):
    cases = find_cases(pictures(tmp_path, ["P1_3", "P1_4", "P2_1"]))
    assert [case.patient for case in cases] == ["P1", "P1", "P2"], "numbered pictures of one name are one patient"
    assert survey(cases, LabelChoice()).names == ("foreground",)


def test_numbered_pictures_of_one_series_are_patients_of_their_own(tmp_path):
    cases = find_cases(pictures(tmp_path, ["slice_1", "slice_2"]))
    assert len({case.patient for case in cases}) == 2


def test_sessions_of_one_bids_subject_are_of_one_patient(tmp_path):
    names = ["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-010_T1w", "subject-01"]
    for name in names:
        save(tmp_path / "images" / f"{name}.nii.gz", image_of(blob()))
        save(tmp_path / "labels" / f"{name}.nii.gz", blob())
    patients = {case.id: case.patient for case in find_cases(tmp_path)}
    assert [patients[name] for name in names] == ["sub-01", "sub-01", "sub-010", "subject-01"]


def test_nnunet_folders_with_channels_and_names(tmp_path):
    for number in (1, 2):
        save(tmp_path / "imagesTr" / f"c_{number:03d}_0000.nii.gz", image_of(blob()))
        save(tmp_path / "imagesTr" / f"c_{number:03d}_0001.nii.gz", 0 * image_of(blob()))
        save(tmp_path / "labelsTr" / f"c_{number:03d}.nii.gz", blob())
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    cases = find_cases(tmp_path)
    assert ids(cases) == ["c_001", "c_002"] and cases[0].image.name == "c_001_0000.nii.gz"
    assert cases[0].read().meaning.names == {1: "liver"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "spleen"}}))
    assert find_cases(tmp_path)[0].read().meaning.names == {1: "spleen"}


def nnunet(folder, labels, values=(0, 1, 2, 3), **more):
    """Two cases in nnU-Net's layout, a cube of each value, and a `dataset.json` with these labels."""
    for number in (1, 2):
        array = np.zeros((4, 8, 8), np.uint8)
        for value in values:
            array[:3, 2 * value : 2 * value + 2, :6] = value
        save(folder / "imagesTr" / f"c_{number:03d}_0000.nii.gz", image_of(array, number))
        save(folder / "labelsTr" / f"c_{number:03d}.nii.gz", array)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **more}))
    return find_cases(folder)


def classes_by_name(case, choice=None):
    """The mask of each label of a case, and what counts for nothing."""
    found = survey([case], LabelChoice.parse(choice))
    labelled = read_labelled(case, found.choice, found.names)
    return {name: labelled.mask(n) for n, name in enumerate(found.names, start=1)}, labelled.ignored


@pytest.mark.parametrize("ignore", [{"ignore": 3}, {"Ignore": 3}, {"ignore": [3]}])
def test_what_nnunet_ignores_is_no_label(tmp_path, ignore):
    case, _ = nnunet(tmp_path, {"background": 0, "liver": 1, "tumour": 2, **ignore})
    labels = case.read().labels
    masks, ignored = classes_by_name(case)
    assert list(masks) == ["liver", "tumour"] and np.array_equal(ignored, labels == 3)
    assert np.array_equal(masks["tumour"], labels == 2)
    assert "Case c_001: not counted, as they are labelled “ignore”: 36 voxels." in survey([case], LabelChoice()).notes
    merged, ignored = classes_by_name(case, "any")
    assert np.array_equal(merged["foreground"], (labels == 1) | (labels == 2)) and ignored.sum() == 36


@pytest.mark.parametrize(
    ("labels", "said"),
    [({"background": 0, "liver": 1, "spleen": 1}, "liver and spleen the same values"),
     ({"0": "background", "1": "liver", "2": "liver"}, "several labels one name"),
     ({"background": 0, "liver": 1, "Liver": 2}, "several labels one name")],
)  # fmt: skip
def test_labels_of_nnunet_that_cannot_be_told_apart_are_refused(tmp_path, labels, said):
    with pytest.raises(UserError, match=said):
        nnunet(tmp_path, labels)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_regions_of_nnunet_have_all_their_values(tmp_path, order):
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    case, _ = nnunet(tmp_path, regions, regions_class_order=order)
    labels = case.read().labels
    masks, _ = classes_by_name(case)
    assert {name: mask.sum() for name, mask in masks.items()} == {
        name: np.isin(labels, values).sum() for name, values in regions.items() if name != "background"
    }
    assert np.array_equal(classes_by_name(case, "core")[0]["core"], labels >= 2)
    with pytest.raises(UserError, match="Case c_001: “.*” overlap in 36 voxels.*--heads promptable"):
        survey([case], LabelChoice(), exclusive=True)
    survey([case], LabelChoice.parse("core"), exclusive=True)


def test_regions_and_what_is_ignored(tmp_path):
    case, _ = nnunet(tmp_path, {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, regions_class_order=[1, 2])
    masks, ignored = classes_by_name(case)
    labels = case.read().labels
    assert np.array_equal(masks["whole"], (labels == 1) | (labels == 2)) and np.array_equal(ignored, labels == 3)


@pytest.mark.parametrize(("pairs", "kept"), [(230, True), (231, False), (270, False)])
def test_labels_that_overlap_in_more_ways_than_can_be_told_apart(tmp_path, pairs, kept):
    """24 regions, two of which share each value."""
    values = np.arange(1, pairs + 1)
    shared = list(itertools.combinations(range(24), 2))[:pairs]
    labels = {f"r{n}": values[[n in pair for pair in shared]].tolist() for n in range(24)}
    array = np.resize(values, (3, 30, 30)).astype(np.uint16)
    save(tmp_path / "imagesTr" / "a_0000.nii.gz", np.arange(array.size, dtype=np.int16).reshape(array.shape))
    save(tmp_path / "labelsTr" / "a.nii.gz", array)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}}))
    (case,) = find_cases(tmp_path)
    if not kept:
        with pytest.raises(UserError, match="overlap in more than 230 ways"):
            classes_by_name(case)
        return
    masks, ignored = classes_by_name(case)
    assert all(np.array_equal(masks[name], np.isin(array, own)) for name, own in labels.items())
    assert not ignored.any()


@pytest.mark.parametrize(
    "content", ['{"labels": 3}', "[]", "{", '{"labels": {"liver": "one"}}', '{"labels": {"a": [1, 2], "b": 2},'
                ' "regions_class_order": [1]}', "[" * 100000,
                *(f'{{"labels": {{"a": [1, 2], "b": 2}}, "regions_class_order": {order}}}' for order in
                  ("[0, 1]", "[[1], 2]", "[{}, 1]", "3", '"12"', "[true, 2]"))],
)  # fmt: skip
def test_a_dataset_json_that_says_nothing_clear(tmp_path, content):
    nnunet(tmp_path, {"background": 0, "liver": 1})
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match="dataset.json"):
        find_cases(tmp_path)


def test_further_channels_are_said(tmp_path):
    nnunet(tmp_path, {"background": 0, "liver": 1})
    save(tmp_path / "imagesTr" / "c_001_0001.nii.gz", image_of(blob((4, 8, 8))))
    notes = survey(find_cases(tmp_path), LabelChoice.parse("1")).notes
    assert notes == ("Case c_001: of the image's 2 channels the first (_0000) is used.",)


def test_every_one_of_many_labels_is_a_label(tmp_path):
    values = np.arange(1, 105)
    labels = np.zeros((4, 16, 16), np.uint8)
    labels[1:3] = np.resize(np.append(values, 0), (16, 16))
    save(tmp_path / "images" / "a.nii.gz", image_of(labels))
    save(tmp_path / "labels" / "a.nii.gz", labels)
    found = survey(find_cases(tmp_path), LabelChoice(), least=1)
    assert found.names == tuple(f"label {value}" for value in values)
    assert np.array_equal(read_labelled(find_cases(tmp_path)[0], found.choice, found.names).classes, labels)


def test_values_of_masks_are_labels_and_shades_of_white_are_one(tmp_path):
    pictures(tmp_path / "two", ["P1_3", "P1_4", "P2_1"], 100)
    mask = np.asarray(Image.open(tmp_path / "two" / "masks" / "P1_3.png")).copy()
    mask[:3, :3] = 200
    Image.fromarray(mask).save(tmp_path / "two" / "masks" / "P1_3.png")
    found = survey(find_cases(tmp_path / "two"), LabelChoice())
    assert found.names == ("label 100", "label 200")
    pictures(tmp_path / "white", ["P1_3", "P1_4", "P2_1"], 254)
    mask = np.where(mask == 100, 255, 0).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "white" / "masks" / "P1_3.png")
    found = survey(find_cases(tmp_path / "white"), LabelChoice())
    assert found.names == ("foreground",) and found.notes[0].startswith(
        f"The masks are white in several shades (254 in 298, 255 in {np.count_nonzero(mask)} pixels)"
    )


def test_soft_edges_of_masks_are_asked_about(tmp_path):
    pictures(tmp_path, ["P1_3", "P1_4", "P2_1"], 255)
    mask = np.asarray(Image.open(tmp_path / "masks" / "P1_3.png")).copy()
    mask[:2] = np.arange(0, 256, 8), np.arange(4, 256, 8)
    Image.fromarray(mask).save(tmp_path / "masks" / "P1_3.png")
    refused(tmp_path, None, "64 grey values .* --label any")
    assert survey(find_cases(tmp_path), LabelChoice.parse("any")).names == ("foreground",)


def test_two_segments_of_one_name_are_asked_about(tmp_path):
    save(tmp_path / "images" / "a.nrrd", image_of(blob()))
    (tmp_path / "labels").mkdir()
    labels = blob() + blob(centre=(4.0, 4.0), radius=3, value=2)
    segments = [SegmentInfo("Node", 1, (1, 0, 0)), SegmentInfo("Node", 2, (0, 1, 0))]
    write_labelmap(tmp_path / "labels" / "a.seg.nrrd", labels, read_volume(tmp_path / "images/a.nrrd"), segments)
    refused(tmp_path, "Node", "2 labels are named Node")
    assert survey(find_cases(tmp_path), LabelChoice()).names == ("label 1", "label 2")


def test_notes_that_differ_only_in_numbers_are_told_by_a_few(tmp_path):
    for number in range(8):
        labels = blob(radius=5 + 0.5 * number)
        save(tmp_path / "images" / f"c{number}.nii.gz", image_of(labels, number))
        save(tmp_path / "labels" / f"c{number}.nii.gz", labels * np.float32(0.9999999))
    found = survey(find_cases(tmp_path), LabelChoice())
    assert len(found.notes) == 6 and found.notes[5] == "The same, with other figures, holds for cases c5, c6, c7."
    assert not any("cases c5" in note for note in found.nameless_notes)
    assert found.nameless_notes[0].startswith(f"Case {found.digests['c0'][:12]}: rounded to whole numbers")


def test_the_patient_of_dicom_images_is_known_however_they_are_stored(tmp_path):
    """As files with all slices, folders of slices, and folders with folders of these."""
    stored = np.zeros((4, 16, 16), np.int16)
    for name, patient in (("a", "Miller"), ("b", "Miller"), ("c", "Smith")):
        write_enhanced(tmp_path / "images" / f"{name}.dcm", stored, range(4), PatientID=patient)
    write_series(tmp_path / "images" / "d", stored, PatientID="Smith")
    write_series(tmp_path / "images" / "e" / "series" / "1", stored, PatientID="Smith")
    for name in "abcde":
        save(tmp_path / "labels" / f"{name}.nii.gz", blob((4, 16, 16)))
    a, b, c, d, e = (case.patient for case in find_cases(tmp_path))
    assert a == b != c == d == e


@pytest.mark.parametrize("header", ["", "image,label,patient\n"])
def test_a_list_of_cases(tmp_path, header):
    case_folder(tmp_path)
    rows = "images/a.nii.gz,labels/a.nii.gz,x\nimages/b.nii.gz,labels/b.nii.gz,x\n"
    (tmp_path / "list.csv").write_text(header + rows)
    assert [case.patient for case in find_cases(tmp_path / "list.csv")] == ["x", "x"]


def test_an_image_without_labels_is_left_out(tmp_path):
    (case_folder(tmp_path) / "labels" / "b.nii.gz").unlink()
    assert ids(find_cases(tmp_path)) == ["a", "c"]


def test_label_files_may_say_that_they_are(tmp_path):
    save(tmp_path / "images" / "x.nii.gz", image_of(blob()))
    save(tmp_path / "labels" / "x_seg.nrrd", blob())
    assert ids(find_cases(tmp_path)) == ["x"]


def test_dicom_with_a_dicom_segmentation_and_with_a_labelmap(tmp_path):
    pytest.importorskip("highdicom")
    phantom, labels, names = body_phantom(0, shape=(5, 48, 48), spacing=(7.0, 7.0, 20.0))
    write_dicom_series(phantom, tmp_path / "images" / "a")
    volume = read_volume(tmp_path / "images" / "a")
    organs = [value for value in np.unique(labels) if value][:2]
    chosen = np.where(np.isin(labels, organs), labels, 0)
    flipped = chosen[:, ::-1, ::-1] if volume.affine[0, 0] * phantom.affine[0, 0] < 0 else chosen
    segments = [SegmentInfo(f"organ {value}", int(value), (1, 0, 0)) for value in organs]
    (tmp_path / "labels").mkdir()
    write_labelmap(tmp_path / "labels" / "a.dcm", flipped, volume, segments)
    _, found, meaning, _ = find_cases(tmp_path)[0].read()
    assert list(meaning.names.values()) == [segment.name for segment in segments]
    for number, value in enumerate(organs, start=1):
        assert np.array_equal(found == number, flipped == value) and (found == number).any()
    (tmp_path / "labels" / "a.dcm").unlink()
    write_labelmap(tmp_path / "labels" / "a.nii.gz", flipped, volume)
    assert np.array_equal(find_cases(tmp_path)[0].read()[1], flipped)


def layered(path, first, second):
    """A Slicer segmentation of two overlapping layers, as Slicer writes it."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.stack([first, second], axis=-1).astype(np.uint8), isVector=True)
    image.SetSpacing((1.0, 1.0, 2.5))
    fields = {}
    for n, name in enumerate(("Cyst", "Liver")):
        fields |= {f"Segment{n}_ID": f"S{n}", f"Segment{n}_Name": name, f"Segment{n}_LabelValue": "1",
                   f"Segment{n}_Layer": str(n)}  # fmt: skip
    for key, value in fields.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path))


def test_segments_in_layers_are_chosen_by_name(tmp_path):
    (tmp_path / "labels").mkdir()
    small, large = blob(radius=3), blob(radius=9)
    save(tmp_path / "images" / "a.nrrd", image_of(large))
    layered(tmp_path / "labels" / "a.seg.nrrd", small, large)
    cases = find_cases(tmp_path)
    assert cases[0].read().meaning.names == {1: "Cyst", 2: "Liver"}
    found = survey(cases, LabelChoice.parse("liver"))
    assert found.names == ("liver",)
    assert np.array_equal(read_labelled(cases[0], found.choice, found.names).classes > 0, large > 0)


def test_a_name_may_have_another_value_in_every_case(tmp_path):
    volume_a, volume_b = image_of(blob()), image_of(blob(), 1)
    for name, array, values in (("a", volume_a, (1, 2)), ("b", volume_b, (2, 1))):
        save(tmp_path / "images" / f"{name}.nrrd", array)
        labels = blob(value=values[0]) + blob(centre=(4.0, 4.0), radius=3, value=values[1])
        segments = [SegmentInfo("Liver", values[0], (1, 0, 0)), SegmentInfo("Spleen", values[1], (0, 1, 0))]
        write_labelmap(tmp_path / "labels" / f"{name}.seg.nrrd", labels, read_volume(tmp_path / f"images/{name}.nrrd"),
                       segments)  # fmt: skip
    cases = find_cases(tmp_path)
    found = survey(cases, LabelChoice.parse("Spleen,Liver"))
    for case in cases:
        classes = read_labelled(case, found.choice, found.names).classes
        assert classes[2, 15, 17] == 2 and classes[2, 4, 4] == 1


# ---- geometry


def test_labels_on_another_grid_are_resampled_by_the_nearest_voxel(tmp_path):
    labels = blob(value=3)
    save(tmp_path / "images" / "a.nii.gz", image_of(labels))
    flipped = AFFINE.copy()
    flipped[:3, 1] *= -1
    flipped[1, 3] = -31
    save(tmp_path / "labels" / "a.nii.gz", labels[:, ::-1], flipped)
    assert np.array_equal(find_cases(tmp_path)[0].read()[1], labels)


def test_labels_cropped_to_their_extent_keep_their_place(tmp_path):
    labels = blob()
    save(tmp_path / "images" / "a.nii.gz", image_of(labels))
    cropped = AFFINE.copy()
    cropped[:3, 3] = AFFINE[:3, :3] @ (8, 6, 1)
    save(tmp_path / "labels" / "a.nii.gz", labels[1:5, 6:28, 8:30], cropped)
    assert np.array_equal(find_cases(tmp_path)[0].read()[1], labels)


def test_labels_elsewhere_are_refused(tmp_path):
    away = AFFINE.copy()
    away[0, 3] = 500
    save(tmp_path / "images" / "a.nii.gz", image_of(blob()))
    save(tmp_path / "labels" / "a.nii.gz", blob(), away)
    with pytest.raises(UserError, match="Case a: the labels have the image's size, but lie 500.0 mm away"):
        find_cases(tmp_path)[0].read()


def test_whoever_says_how_labels_are_matched_is_obeyed(tmp_path):
    away = AFFINE.copy()
    away[0, 3] = 4
    for number, name in enumerate("abc"):
        save(tmp_path / "images" / f"{name}.nii.gz", image_of(blob(), number))
        save(tmp_path / "labels" / f"{name}.nii.gz", blob(), away)
    by_index, by_position = (find_cases(tmp_path, match=how) for how in ("index", "position"))
    assert np.array_equal(by_index[0].read().labels, blob())
    assert np.array_equal(by_position[0].read().labels[:, :, :-4], blob()[:, :, 4:])
    assert survey(by_index, LabelChoice()).notes == (
        "Cases a, b, c: the labels were taken voxel by voxel, although their file places them 4.0 mm from the image.",
    )
    with pytest.raises(UserError, match="choose index or position"):
        find_cases(tmp_path, match="both")


def test_pictures_of_two_sizes_are_refused(tmp_path):
    pictures(tmp_path, ["a"])
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match="label picture is 9 × 8 × 1, but its image 32 × 32 × 1"):
        find_cases(tmp_path)[0].read()


# ---- what cannot teach


def refused(folder, choice=None, match=""):
    with pytest.raises(UserError, match=match):
        survey(find_cases(folder), LabelChoice.parse(choice))


def test_an_unknown_label_is_refused_with_those_that_are_there(tmp_path):
    refused(case_folder(tmp_path), "1,7", "No case has the label 7; the cases hold 1")


def test_empty_labels_are_refused_by_name(tmp_path):
    save(case_folder(tmp_path) / "labels" / "b.nii.gz", 0 * blob())
    refused(tmp_path, None, "Case b holds nothing of label 1 and no label at all")


def test_all_labels_empty(tmp_path):
    save(tmp_path / "images" / "a.nii.gz", image_of(blob()))
    save(tmp_path / "labels" / "a.nii.gz", 0 * blob())
    refused(tmp_path, None, "labels of all cases are empty")


def test_a_label_missing_in_one_case_is_said(tmp_path):
    both = blob() + blob(centre=(3, 3), radius=2, value=2)
    save(case_folder(tmp_path) / "labels" / "b.nii.gz", both)
    assert survey(find_cases(tmp_path), LabelChoice.parse("1,2")).notes == (
        "Cases a, c: there is no label 2.",
    )  # fmt: skip


def test_too_few_slices(tmp_path):
    refused(pictures(tmp_path, ["a", "b"]), None, "only 2 labelled slices in all")


def test_one_image_in_two_cases(tmp_path):
    for name in "ab":
        save(tmp_path / "images" / f"{name}.nii.gz", image_of(blob()))
        save(tmp_path / "labels" / f"{name}.nii.gz", blob())
    refused(tmp_path, None, "cases a, b hold the same image")


def test_images_and_labels_mixed_up(tmp_path):
    save(tmp_path / "images" / "a.nii.gz", blob())
    save(tmp_path / "labels" / "a.nii.gz", image_of(blob()).astype(np.float32) + 0.5)
    refused(tmp_path, None, "holds fractions .* image and labels are not mixed up")


def test_folders_of_images_and_labels_mixed_up(tmp_path):
    case_folder(tmp_path)
    for old, new in (("images", "x"), ("labels", "images"), ("x", "labels")):
        (tmp_path / old).rename(tmp_path / new)
    refused(tmp_path, None, "Case a: the image holds 2 different values, its labels .* mixed up")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_lies_about_in_folders(tmp_path):
    case_folder(tmp_path)
    for name in ("._a.nii.gz", ".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / "labels" / name).write_bytes(b"x")
    for kind in ("images", "labels"):
        os.mkfifo(tmp_path / kind / "pipe.nii.gz")
        (tmp_path / kind / "__MACOSX").mkdir()
    assert ids(find_cases(tmp_path)) == ["a", "b", "c"]
    for kind in ("images", "labels"):
        (tmp_path / kind / "d.nii.gz").symlink_to(tmp_path / "gone")
    refused(tmp_path, None, "Case d: .*d.nii.gz")


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (lambda folder: None, "holds no cases"),
        (lambda folder: (folder / "list.csv").write_text("\n"), "lists no cases"),
        (lambda folder: (folder / "list.csv").write_text("one\n"), "Entry 1 of “list.csv”"),
        (lambda folder: (folder / "list.csv").write_text("a.nii,b.nii\n"), "does not exist; correct entry 1"),
        (lambda folder: save(case_folder(folder) / "labels" / "z.nii.gz", blob()), "labels without an image.*: z"),
        (lambda folder: (case_folder(folder) / "masks").mkdir(), "labels/ and masks/"),
        (lambda folder: (folder / "imagesTr").mkdir(), "no labelsTr"),
    ],
)
def test_what_is_no_folder_of_cases(tmp_path, prepare, match):
    prepare(tmp_path)
    listing = tmp_path / "list.csv"
    with pytest.raises(UserError, match=match):
        find_cases(listing if listing.exists() else tmp_path)


@pytest.mark.parametrize("text", ["", "1,1", ","])
def test_a_choice_of_nothing_or_of_one_thing_twice(text):
    with pytest.raises(UserError):
        LabelChoice.parse(text)


def test_digests_follow_image_and_labels_and_not_names(tmp_path):
    case_folder(tmp_path / "one", count=1)
    (tmp_path / "two").mkdir()
    for kind in ("images", "labels"):
        (tmp_path / "two" / kind).mkdir()
        source = tmp_path / "one" / kind / "a.nii.gz"
        (tmp_path / "two" / kind / "other.nii.gz").write_bytes(source.read_bytes())
    first, second = (find_cases(tmp_path / name)[0] for name in ("one", "two"))
    assert first.digest == second.digest
    save(tmp_path / "two" / "labels" / "other.nii.gz", blob())
    assert find_cases(tmp_path / "two")[0].digest != first.digest


# ---- splits


@pytest.fixture
def twelve(tmp_path):
    rows = []
    for number in range(12):
        save(tmp_path / "images" / f"{number:02d}.nii.gz", image_of(blob(), number))
        save(tmp_path / "labels" / f"{number:02d}.nii.gz", blob())
        rows.append(f"images/{number:02d}.nii.gz,labels/{number:02d}.nii.gz,p{number // 2}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    return find_cases(tmp_path / "list.csv")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [{"folds": 3}, {"folds": 6}, {}, {"shots": 4}])
def test_no_patient_is_on_both_sides(twelve, settings, seed):
    folds = split(twelve, seed=seed, **settings)
    for part in folds.parts:
        assert not {case.patient for case in part.train} & {case.patient for case in part.test}
        require_separate(part.train, part.test)
    if "shots" in settings:
        assert len(folds.final) == 4 == len({case.patient for case in folds.final})
    else:
        assert sorted(ids(case for part in folds.parts for case in part.test)) == ids(twelve), "each is tested once"
        assert folds.final == twelve


def test_kinds_of_evidence(twelve):
    assert split(twelve).kind == "k-fold" and len(split(twelve).parts) == 5
    assert split(twelve[:6]).kind == "leave-one-out" and len(split(twelve[:6]).parts) == 3
    assert split(twelve[:2]).kind == "none", "two cases of one patient hold nothing out"
    assert split(twelve, shots=2, seed=1) == split(twelve, shots=2, seed=1) != split(twelve, shots=2, seed=2)


def test_one_patient_on_both_sides_is_refused(twelve):
    assert split(twelve[:4], test=twelve[4:]).kind == "given"
    with pytest.raises(UserError, match="both the training and the test cases .04"):
        split(twelve[:5], test=twelve[4:])


@pytest.mark.parametrize("settings", [{"folds": 1}, {"folds": 7}, {"shots": 7}, {"shots": 0}, {"shots": 2, "folds": 2}])
def test_splits_that_cannot_be(twelve, settings):
    with pytest.raises(UserError):
        split(twelve, **settings)


def test_validation_takes_whole_patients(twelve):
    part = set_aside(twelve, 2, seed=0)
    assert len(part.test) == 4 and len(part.train) == 8
    require_separate(part.train, part.test)


def test_reading_cases_needs_no_pytorch(root):
    code = (
        "import sys, SAMFineTuneLib.cases.cases, SAMFineTuneLib.cases.splits\n"
        "print(sorted({'torch', 'scipy', 'peft', 'onnxruntime'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_key_twice_in_dataset_json_is_refused(tmp_path):
    save(tmp_path / "imagesTr" / "c_001_0000.nii.gz", image_of(blob()))
    save(tmp_path / "labelsTr" / "c_001.nii.gz", blob())
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "liver": 2}}')
    with pytest.raises(UserError, match="not a usable dataset.json"):
        find_cases(tmp_path)


# ---- names of segments that differ from case to case


def segmentations(folder, *names):
    """Cases whose labels 1 and 2 have these names each; returns the labels, which all have in common."""
    labels = np.maximum(blob(), 2 * blob(centre=(5, 5), radius=3))
    for number, pair in enumerate(names):
        fields = {f"Segment{n}_{key}": value for n, name in enumerate(pair) for key, value in
                  (("Name", name), ("ID", f"s{n}"), ("LabelValue", str(n + 1)), ("Layer", "0"))}  # fmt: skip
        save(folder / "images" / f"{number}.nrrd", image_of(labels, number))
        save(folder / "labels" / f"{number}.seg.nrrd", labels, fields=fields)
    return labels


def test_segments_in_another_order_are_matched_by_name(tmp_path):
    labels = segmentations(tmp_path, ("liver", "spleen"), ("Spleen", "Liver"))
    cases = find_cases(tmp_path)
    found = survey(cases, LabelChoice())
    assert [name.casefold() for name in found.names] == ["liver", "spleen"] and not found.notes
    first, second = (read_labelled(case, found.choice, found.names).classes for case in cases)
    assert np.array_equal(first, labels) and np.array_equal(second, np.array([0, 2, 1])[labels])


def test_one_number_with_several_names_is_told(tmp_path):
    segmentations(tmp_path, ("liver", "spleen"), ("spleen", "liver"))
    (note,) = survey(find_cases(tmp_path), LabelChoice.parse("1")).notes
    assert note.startswith("Label 1 is named liver and spleen in different cases")


def test_segments_of_one_name_are_told(tmp_path):
    segmentations(tmp_path, ("liver", "Liver"))
    found = survey(find_cases(tmp_path), LabelChoice.parse("1,2"))
    assert len(found.names) == 2
    assert found.notes[0].startswith("Case 0: 2 segments are named “liver” (labels 1, 2)")
