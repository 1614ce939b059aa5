"""Cohorts made of every kind of source, and images that are moved or added later."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from case_files import AFFINE, blob, image_of, save
from dicom_samples import write_series
from PIL import Image
from small_cohorts import small_cohort, truth

from SAMFineTuneLib.cases.cases import find_cases, patient_of_files
from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cohort.cohort_export import export
from SAMFineTuneLib.cohort.cohort_folder import STATE_FILE, Cohort
from SAMFineTuneLib.cohort.create_cohort import add_images, create_cohort, locate_images
from SAMFineTuneLib.cohort.find_images import find_images
from SAMFineTuneLib.cohort.image_check import check_images
from SAMFineTuneLib.cohort.patients import patient_digest
from SAMFineTuneLib.cohort.review import accept
from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import SegmentInfo, read_volume, write_labelmap


def made(folder, source, *labels):
    return create_cohort(folder, find_images(source), labels)


def test_labels_that_cannot_be_used_are_told_where_no_names_are_known(tmp_path):
    save(tmp_path / "images" / "a.nii.gz", image_of(truth(0), 0), AFFINE)
    save(tmp_path / "labels" / "a.nii.gz", truth(0).astype(np.int32) * 70_000, AFFINE)
    with pytest.raises(UserError, match="needs the names of its structures.* The labels of a are not used.*70000"):
        made(tmp_path / "cohort", tmp_path)


@pytest.mark.parametrize("name", ["li\x00ver", "li\udcffver"])
def test_names_that_no_file_can_hold_are_refused(tmp_path, name):
    save(tmp_path / "images" / "a.nii.gz", image_of(truth(0), 0), AFFINE)
    with pytest.raises(UserError, match="has a character that no file can hold"):
        made(tmp_path / "cohort", tmp_path / "images", name)
    assert not (tmp_path / "cohort").exists()


def test_a_folder_with_some_labels(tmp_path):
    cohort = small_cohort(tmp_path, count=4, labelled=2)
    assert [case.name for case in cohort.state.cases] == ["a", "b", "c", "d"]
    assert [case.state for case in cohort.state.cases] == ["accepted", "accepted", "untouched", "untouched"]
    assert [case.review.order for case in cohort.state.accepted] == [1, 2]
    for number, case in enumerate(cohort.state.accepted):
        assert np.array_equal(read_labels(cohort.accepted(case.key)).array, truth(number))
    assert len({case.patient for case in cohort.state.cases}) == 4
    text = (cohort.folder / STATE_FILE).read_text()
    assert str(tmp_path) in text and json.loads(text)["cases"][0]["image"] == "a.nii.gz"


def test_nnunets_layout_with_images_for_testing(tmp_path):
    for name, folder in (("x", "imagesTr"), ("y", "imagesTr"), ("z", "imagesTs")):
        for channel in ("0000", "0001"):
            save(tmp_path / "raw" / folder / f"{name}_{channel}.nii.gz", image_of(blob(), ord(name)))
    save(tmp_path / "raw" / "labelsTr" / "x.nii.gz", blob(value=2))
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "spleen": 2}}))
    cohort = made(tmp_path / "cohort", tmp_path / "raw").cohort
    assert [(case.image, case.state) for case in cohort.state.cases] == [
        ("imagesTr/x_0000.nii.gz", "accepted"), ("imagesTr/y_0000.nii.gz", "untouched"),
        ("imagesTs/z_0000.nii.gz", "untouched"),
    ]  # fmt: skip
    assert cohort.state.labels == {2: "spleen"}


def test_a_list_names_the_patients(tmp_path):
    rows = ["image,label,patient"]
    for number in range(3):
        save(tmp_path / f"{number}.nii.gz", image_of(truth(number), number))
        save(tmp_path / f"{number}_seg.nii.gz", truth(number))
        rows.append(f"{number}.nii.gz,{number}_seg.nii.gz,Miller {number // 2}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    cohort = made(tmp_path / "cohort", tmp_path / "list.csv", "blob").cohort
    patients = [case.patient for case in cohort.state.cases]
    assert patients[0] == patients[1] != patients[2]
    assert "Miller" not in (cohort.folder / STATE_FILE).read_text()


@pytest.mark.parametrize("lines", [
    ["image,label,patient", "0.nii.gz,0_seg.nii.gz,Miller", "1.nii.gz,,Miller", "2.nii.gz"],
    ["Patient ID;Image", "Miller;0.nii.gz", "Miller;1.nii.gz", ";2.nii.gz"],
    ["0.nii.gz,0_seg.nii.gz,Miller", "1.nii.gz,,Miller", "2.nii.gz,,"],
    ["0.nii.gz", "1.nii.gz", "2.nii.gz"],
])  # fmt: skip
def test_a_list_may_lack_labels(tmp_path, lines):
    for number in range(3):
        save(tmp_path / f"{number}.nii.gz", image_of(truth(number), number))
    save(tmp_path / "0_seg.nii.gz", truth(0))
    (tmp_path / "list.csv").write_text("\n".join(lines))
    cases = made(tmp_path / "cohort", tmp_path / "list.csv", "blob").cohort.state.cases
    text = "\n".join(lines)
    assert [case.name for case in cases] == ["0", "1", "2"]
    assert [case.state for case in cases] == ["accepted" if "seg" in text else "untouched", "untouched", "untouched"]
    assert (cases[0].patient == cases[1].patient) == ("Miller" in text) and cases[1].patient != cases[2].patient
    with pytest.raises(UserError):  # whoever trains needs labels
        find_cases(tmp_path / "list.csv")


def test_what_a_list_lacks_is_one_sentence(tmp_path):
    save(tmp_path / "0.nii.gz", image_of(truth(0)))
    for lines, words in {
        "image,label\n0.nii.gz,gone.nii.gz": "gone.nii.gz, which does not exist; correct entry 1",
        "image,label\n0.nii.gz\n,0.nii.gz": "Entry 2 of “list.csv” is not image or image,label,patient",
        "image\ngone.nii.gz": "gone.nii.gz, which does not exist",
        "image,label,patient": "lists no cases; write a line “image” for each",
        "label,patient\n0.nii.gz,x": "has no column image",
    }.items():
        (tmp_path / "list.csv").write_text(lines)
        with pytest.raises(UserError, match=words):
            find_images(tmp_path / "list.csv")


def test_sessions_of_one_bids_subject_are_of_one_patient_whenever_they_come(tmp_path):
    for number, name in enumerate(["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "later/sub-02_ses-2"]):
        save(tmp_path / "scans" / f"{name}_0000.nii.gz", image_of(truth(number), number), AFFINE)
    (tmp_path / "scans" / "later").rename(tmp_path / "later")
    cohort = made(tmp_path / "cohort", tmp_path / "scans", "blob").cohort
    add_images(cohort, find_images(tmp_path / "later"))
    patients = [case.patient for case in cohort.state.cases]
    assert patients[0] == patients[1] != patients[2] == patients[3]
    before = tuple(replace(case, patient=patient_digest(case.key, "")) for case in cohort.state.cases)
    cohort.change(lambda state: replace(state, cases=before))  # as it was made before names told patients
    check_images(cohort)
    assert [case.patient for case in cohort.state.cases] == patients


@pytest.mark.parametrize("channel", ["", "_0000"])
def test_numbered_pictures_of_one_patient_are_of_one_patient(tmp_path, channel):
    folder = tmp_path / ("imagesTr" if channel else "scans")
    folder.mkdir()
    for number, name in enumerate(["P1_3", "P1_4", "P2_3"]):
        Image.fromarray(image_of(truth(number), number)[0].astype(np.uint8)).save(folder / f"{name}{channel}.png")
    cohort = made(tmp_path / "cohort", tmp_path if channel else folder, "blob").cohort
    first, second, third = (case.patient for case in cohort.state.cases)
    assert first == second != third


def test_patients_of_two_cohorts_cannot_be_compared(tmp_path):
    stored = (image_of(blob()) + 100).astype(np.uint16)
    for number, patient in enumerate(["4711", "4711", "4712"]):
        write_series(tmp_path / "scans" / str(number), stored + number, PatientID=patient)
    first, second = (made(tmp_path / name, tmp_path / "scans", "liver").cohort for name in ("one", "two"))
    own, other = ([case.patient for case in cohort.state.cases] for cohort in (first, second))
    assert own[0] == own[1] != own[2] and not set(own) & set(other)
    # Scans that come later find their patient, also in a cohort from before there was a salt.
    old = [hashlib.sha256(patient_of_files(sorted((tmp_path / "scans" / name).iterdir())).encode()).hexdigest()[:12]
           for name in "012"]  # fmt: skip
    assert not {*own, *other} & {*old}
    file = second.folder / STATE_FILE
    content = json.loads(file.read_text())
    del content["salt"]
    content["format"] = 1
    for case, patient in zip(content["cases"], old, strict=True):
        case["patient"] = patient
    file.write_text(json.dumps(content))
    write_series(tmp_path / "more" / "3", stored + 3, PatientID="4712")
    for cohort, patients in ((first, own), (second, old)):
        assert add_images(Cohort(cohort.folder), find_images(tmp_path / "more")) == ()
        assert [case.patient for case in Cohort(cohort.folder).state.cases] == [*patients, patients[2]]


def test_dicom_folders_with_several_series(tmp_path):
    stored = (image_of(blob((8, 32, 32))) + 100).astype(np.uint16)
    scans = tmp_path / "scans"
    write_series(scans / "p1" / "CT", stored, PatientID="Miller")
    write_series(scans / "p1" / "CT" / "2", stored + 1, PatientID="Miller", SeriesNumber=2)
    write_series(scans / "p1" / "CT" / "3", stored[:2], PatientID="Miller", SeriesNumber=3)  # a localizer
    write_series(scans / "p2" / "1.2.840.10008", stored + 2, PatientID="Miller", SeriesNumber=1)
    write_series(scans / "p3" / "CT", stored + 3, PatientID="Smith")
    (scans / "readme.txt").write_text("ours")
    new = made(tmp_path / "cohort", scans, "liver")
    cases = new.cohort.state.cases
    assert new.notes == ()
    assert [case.image.partition("#")[0] for case in cases] == ["p1/CT", "p1/CT", "p2/1.2.840.10008", "p3/CT"]
    assert [case.patient == cases[0].patient for case in cases] == [True, True, True, False]
    assert len({case.name for case in cases[:3]}) == 3 and cases[2].name == "1.2.840.10008"
    for number, case in enumerate(cases):
        assert read_volume(new.cohort.image(case)).array.max() == stored.max() + number
    accept(new.cohort, cases[1].key, blob((8, 32, 32)))
    # More series in the folder do not change which one is meant.
    write_series(scans / "p1" / "CT" / "0", stored + 9, PatientID="Miller", SeriesNumber=0)
    assert read_volume(new.cohort.image(cases[1])).digest.startswith(cases[1].key)
    assert "Miller" not in (new.cohort.folder / STATE_FILE).read_text()


def test_broken_and_doubled_images_are_left_out_with_a_note(tmp_path):
    small_cohort(tmp_path / "all", count=3)
    images = tmp_path / "all" / "images"
    shutil.copy(images / "a.nii.gz", images / "same.nii.gz")
    (images / "cut.nii.gz").write_bytes((images / "b.nii.gz").read_bytes()[:300])
    (images / "empty.nii.gz").write_bytes(b"")
    new = made(tmp_path / "cohort", tmp_path / "all", "blob")
    assert [case.name for case in new.cohort.state.cases] == ["a", "b", "c"]
    assert len(new.notes) == 3 and any("same.nii.gz is left out: a is the same image" in note for note in new.notes)


def test_a_missing_slice_is_told(tmp_path):
    stored = (image_of(blob((8, 32, 32))) + 100).astype(np.uint16)
    places = [(0.0, 0.0, 2.5 * k) for k in range(9) if k != 4]
    write_series(tmp_path / "scans" / "p1", stored, positions=places)
    (note,) = made(tmp_path / "cohort", tmp_path / "scans", "liver").notes
    assert note.startswith("p1: 1 slice is missing from this series")


def test_slicers_segmentations_and_other_cohorts_are_not_images(tmp_path):
    folder = tmp_path / "loose"
    save(folder / "scan.nrrd", image_of(blob()))
    save(folder / "scan.seg.nrrd", blob())
    (folder / "notes.txt").write_text("x")
    cohort = made(folder / "cohort", folder, "blob").cohort
    accept(cohort, "scan", blob())
    assert [one.image.name for one in find_images(folder)] == ["scan.nrrd"]


def test_label_maps_that_were_exported_are_not_images(tmp_path):
    cohort = small_cohort(tmp_path, count=2, labelled=1)
    export(cohort, tmp_path / "images" / "exported")
    assert len(find_images(tmp_path / "images")) == 2


@pytest.mark.parametrize("adding", [False, True])
def test_a_folder_that_cannot_be_written_is_refused_before_images_are_read(tmp_path, monkeypatch, adding):
    cohort, shown = small_cohort(tmp_path, count=2), []

    def refuse(folder):
        raise DiskError(f"no place in {folder}")

    monkeypatch.setattr("SAMFineTuneLib.cohort.create_cohort.require_writable", refuse)
    images = find_images(tmp_path / "images")
    with pytest.raises(UserError, match="no place in"):
        if adding:
            add_images(cohort, images, lambda *progress: shown.append(progress))
        else:
            create_cohort(tmp_path / "new", images, ["blob"], progress=lambda *progress: shown.append(progress))
    assert shown == []


def test_labels_are_matched_by_the_names_in_their_files(tmp_path):
    fields = [{"Segment0_Name": first, "Segment0_ID": "s1", "Segment0_LabelValue": "1", "Segment0_Layer": "0",
               "Segment1_Name": second, "Segment1_ID": "s2", "Segment1_LabelValue": "2", "Segment1_Layer": "0"}
              for first, second in (("liver", "spleen"), ("Spleen", "Liver"), ("liver", "tumour"))]  # fmt: skip
    labels = blob() + 2 * blob(centre=(5, 5), radius=3)
    labels[labels > 2] = 2
    for number, own in enumerate(fields):
        save(tmp_path / "images" / f"{number}.nrrd", image_of(labels, number))
        save(tmp_path / "labels" / f"{number}.seg.nrrd", labels, fields=own)
    swapped = np.array([0, 2, 1])[labels]

    new = made(tmp_path / "given", tmp_path, "liver", "spleen")
    assert [case.state for case in new.cohort.state.cases] == ["accepted", "accepted", "untouched"]
    assert len(new.notes) == 1 and "tumour" in new.notes[0]
    found = [read_labels(new.cohort.accepted(case.key)).array for case in new.cohort.state.accepted]
    assert np.array_equal(found[0], labels) and np.array_equal(found[1], swapped)

    cohort = made(tmp_path / "open", tmp_path).cohort
    assert cohort.state.labels == {1: "liver", 2: "spleen", 3: "tumour"}
    found = [read_labels(cohort.accepted(case.key)).array for case in cohort.state.accepted]
    assert np.array_equal(found[1], swapped) and np.array_equal(found[2], np.array([0, 1, 3])[labels])


def test_a_damaged_series_is_said_to_be_left_out(tmp_path):
    write_series(tmp_path / "scans" / "good", np.zeros((6, 8, 8), np.int16) + np.arange(8, dtype=np.int16))
    write_series(tmp_path / "scans" / "bad", np.ones((3, 8, 8), np.int16))
    for file in (tmp_path / "scans" / "bad").iterdir():
        file.write_bytes(file.read_bytes()[:400])
    (tmp_path / "scans" / "other").mkdir()
    (tmp_path / "scans" / "other" / "README").write_text("no image")
    new = made(tmp_path / "cohort", tmp_path / "scans", "blob")
    assert [case.name for case in new.cohort.state.cases] == ["good"]
    assert len(new.notes) == 1 and new.notes[0].startswith("bad is left out: No DICOM image in")


@pytest.mark.parametrize("others", [0, 1, 2])
def test_a_series_none_of_whose_files_can_be_read_is_said_beside_others(tmp_path, others):
    """All in one folder, where the files of the broken one still say which series they are of."""
    scans, stored = tmp_path / "scans", (image_of(blob((8, 32, 32))) + 100).astype(np.uint16)
    for number in range(others):
        write_series(scans / f"p{number}", stored + number, SeriesNumber=number)
    write_series(scans, stored[:5])
    for file in scans.iterdir():
        if file.is_file():
            file.write_bytes(file.read_bytes()[: -stored[0].nbytes - 30])
    if not others:
        with pytest.raises(UserError, match="can be read"):
            made(tmp_path / "cohort", scans, "blob")
        return
    new = made(tmp_path / "cohort", scans, "blob")
    assert len(new.cohort.state.cases) == others
    assert sum("and 2 more were left out" in note for note in new.notes) == 1


def test_labels_without_an_image_are_left_out_and_named(tmp_path):
    small_cohort(tmp_path / "all", count=3, labelled=2)
    (tmp_path / "all" / "images" / "b.nii.gz").unlink()
    new = made(tmp_path / "cohort", tmp_path / "all")
    assert [(case.name, case.state) for case in new.cohort.state.cases] == [("a", "accepted"), ("c", "untouched")]
    (note,) = new.notes
    assert note.startswith("Left out: labels without an image of that name in") and note.endswith(": b.")
    (tmp_path / "all" / "images" / "a.nii.gz").unlink()
    again = made(tmp_path / "again", tmp_path / "all", "blob")
    assert [case.name for case in again.cohort.state.cases] == ["c"] and again.notes[0].endswith(": a, b.")


def test_segments_of_one_name_in_a_file_are_told(tmp_path):
    labels = np.maximum(blob(), 2 * blob(centre=(5, 5), radius=3))
    fields = {f"Segment{n}_{key}": value for n, name in enumerate(("liver", "Liver")) for key, value in
              (("Name", name), ("ID", f"s{n}"), ("LabelValue", str(n + 1)), ("Layer", "0"))}  # fmt: skip
    save(tmp_path / "images" / "a.nrrd", image_of(labels))
    save(tmp_path / "labels" / "a.seg.nrrd", labels, fields=fields)
    new = made(tmp_path / "cohort", tmp_path)
    (note,) = new.notes
    assert note.startswith("a: 2 segments are named “liver” (labels 1, 2)")
    assert new.cohort.state.labels == {1: "liver"}
    assert np.array_equal(read_labels(new.cohort.accepted(new.cohort.state.cases[0].key)).array, labels > 0)


def test_a_list_is_matched_as_asked_and_what_became_of_its_labels_is_said(tmp_path):
    shifted = AFFINE.copy()
    shifted[0, 3] += 40
    for name, affine in (("a", shifted), ("b", AFFINE), ("c", AFFINE)):
        save(tmp_path / f"{name}.nii.gz", image_of(blob(), ord(name)))
        save(tmp_path / f"{name}_seg.nii.gz", blob(), affine)
    (tmp_path / "list.csv").write_text("image,label,patient\n" + "".join(
        f"{name}.nii.gz,{name}_seg.nii.gz,{patient}\n" for name, patient in (("a", "x"), ("b", "y"), ("c", ""))
    ))  # fmt: skip
    new = create_cohort(tmp_path / "cohort", find_images(tmp_path / "list.csv", "index"), ("blob",))
    assert [case.state for case in new.cohort.state.cases] == ["accepted"] * 3
    assert len({case.patient for case in new.cohort.state.cases}) == 3
    voxel_by_voxel, patient = new.notes
    assert voxel_by_voxel.startswith("a: The labels were taken voxel by voxel")
    assert patient.startswith("c: The list names no patient")


def test_a_structures_name_is_known_in_any_case_and_form_of_its_umlauts(tmp_path):
    for number, name in enumerate(["Hüftgelenk", "HÜFTGELENK", "Hu\u0308ftgelenk"]):
        image = tmp_path / "images" / f"{number}.nii.gz"
        save(image, image_of(truth(number), number), AFFINE)
        (tmp_path / "labels").mkdir(exist_ok=True)
        segments = [SegmentInfo(name, 1, (1.0, 0.0, 0.0))]
        write_labelmap(tmp_path / "labels" / f"{number}.seg.nrrd", truth(number), read_volume(image), segments)
    cohort = made(tmp_path / "cohort", tmp_path).cohort
    assert cohort.state.labels == {1: "Hüftgelenk"} and len(cohort.state.accepted) == 3
    with pytest.raises(UserError, match="needs a name of its own"):
        made(tmp_path / "other", tmp_path, "Hüftgelenk", "Hu\u0308ftgelenk")


def test_a_gap_in_the_names_moves_no_value(tmp_path):
    images = find_images(small_cohort(tmp_path).images)
    with pytest.raises(UserError, match="called “liver”, “”, “spleen”"):
        create_cohort(tmp_path / "new", images, ["liver", " ", "spleen"])
    assert create_cohort(tmp_path / "new", images, ["liver", "spleen", ""]).cohort.state.labels == {
        1: "liver", 2: "spleen"
    }  # fmt: skip


@pytest.mark.parametrize("wrong", ["missing", "empty", "file", "unnamed", "twice", "inside", "around"])
def test_what_cannot_become_a_cohort_is_one_sentence(tmp_path, wrong):
    small_cohort(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.xlsx").write_text("x")
    source = {"missing": "none", "empty": "empty", "file": "file.xlsx"}.get(wrong, "good/images")
    target = {"twice": "good/cohort", "inside": "good/images", "around": "good"}.get(wrong, "new")
    with pytest.raises(UserError) as error:
        made(tmp_path / target, tmp_path / source, *([] if wrong == "unnamed" else ["blob"]))
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "new").exists() and not (tmp_path / "good" / STATE_FILE).exists()
    assert not (tmp_path / "good" / "images" / STATE_FILE).exists()


def test_a_cohort_moves_with_its_images_or_without_them(tmp_path):
    small_cohort(tmp_path / "here", labelled=1)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.move(tmp_path / "here", tmp_path / "gone")
    for place in ("there", "gone"):
        moved = Cohort(tmp_path / place / "cohort")
        assert all(moved.image(case).is_relative_to(tmp_path / place) for case in moved.state.cases)
    shutil.move(tmp_path / "there" / "cohort", tmp_path / "elsewhere")
    (tmp_path / "images").mkdir()  # another folder of that name beside it
    with pytest.raises(UserError, match="samfinetune cohort locate"):
        alone = Cohort(tmp_path / "elsewhere")
        alone.image(alone.state.cases[0])
    assert locate_images(alone, find_images(tmp_path / "there" / "images")) == 3
    assert all(alone.image(case).exists() for case in alone.state.cases)
    assert alone.state.case("a").state == "accepted"


def test_a_gone_image_is_not_looked_for_once_for_every_case(tmp_path, monkeypatch):
    cohort, asked = small_cohort(tmp_path, 12), []
    shutil.rmtree(tmp_path / "images")
    there = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: asked.append(path) or there(path))
    assert not any(cohort.path(case).exists() for case in cohort.state.cases)
    assert 12 <= len(asked) <= 12 * 4, "on a drive in a network each takes a while"


def test_a_cohort_without_its_images_beside_it_finds_them_where_they_were(tmp_path):
    cohort = small_cohort(tmp_path / "here")
    (tmp_path / "deep" / "down").mkdir(parents=True)
    shutil.move(cohort.folder, tmp_path / "deep" / "down" / "cohort")
    moved = Cohort(tmp_path / "deep" / "down" / "cohort")
    assert [moved.image(case).parent for case in moved.state.cases] == [tmp_path / "here" / "images"] * 3


def test_locating_finds_renamed_images_and_keeps_the_others(tmp_path):
    cohort = small_cohort(tmp_path / "here")
    images = tmp_path / "here" / "images"
    (tmp_path / "new").mkdir()
    shutil.move(images / "b.nii.gz", tmp_path / "new" / "renamed.nii.gz")
    before = {case.name: case.key for case in cohort.state.cases}
    assert locate_images(cohort, find_images(tmp_path / "new")) == 1
    assert {case.key for case in cohort.state.cases} == set(before.values())
    assert cohort.image(cohort.state.case(before["b"])) == tmp_path / "new" / "renamed.nii.gz"
    assert cohort.image(cohort.state.case("a")) == images / "a.nii.gz"
    save(tmp_path / "other" / "strange.nii.gz", image_of(blob(), 77))
    assert locate_images(cohort, find_images(tmp_path / "other")) == 0


def test_adding_images_keeps_what_is_there(tmp_path):
    cohort = small_cohort(tmp_path / "here", labelled=2)
    more = tmp_path / "more"
    for number, name in ((0, "again"), (7, "new"), (8, "plain")):
        save(more / "images" / f"{name}.nii.gz", image_of(truth(number), number))
    save(more / "labels" / "new.nii.gz", truth(7))
    notes = add_images(cohort, find_images(more))
    assert len(notes) == 1 and "a is the same image" in notes[0]
    assert {case.name: case.state for case in cohort.state.cases} == {
        "a": "accepted", "b": "accepted", "c": "untouched", "new": "accepted", "plain": "untouched"}  # fmt: skip
    assert [case.review.order for case in cohort.state.accepted] == [1, 2, 3]
    assert all(cohort.image(case).exists() for case in cohort.state.cases)


def test_what_is_unusual_about_images_and_labels_is_said(tmp_path):
    for number, name in enumerate("abcd"):
        save(tmp_path / "images" / f"{name}.nii.gz", image_of(truth(number), number))
    for name, labels in (("a", truth(0)), ("b", truth(1)[:4, :20]), ("c", truth(2) * 0)):
        save(tmp_path / "labels" / f"{name}.nii.gz", labels)
    notes = made(tmp_path / "cohort", tmp_path, "blob").notes
    assert notes[0].startswith("b: The labels have 32 × 20 × 4")
    assert "labels of c" in notes[1] and "nothing is labelled" in notes[1]
    for name in ("one/scan", "two/scan", "other"):
        save(tmp_path / "many" / f"{name}.nii.gz", image_of(truth(5), 5))
    notes = made(tmp_path / "again", tmp_path / "many", "blob").notes
    assert any("two/scan.nii.gz is left out" in note for note in notes), "of two of one name it is said which"


def test_links_to_images_keep_their_names(tmp_path):
    save(tmp_path / "store" / "blob.nii.gz", image_of(blob()))
    (tmp_path / "images").mkdir()
    shutil.move(tmp_path / "store" / "blob.nii.gz", tmp_path / "store" / "5ad3f7")
    try:
        (tmp_path / "images" / "case.nii.gz").symlink_to(tmp_path / "store" / "5ad3f7")
    except OSError:
        pytest.skip("links need a permission here")
    cohort = made(tmp_path / "cohort", tmp_path / "images", "blob").cohort
    (case,) = cohort.state.cases
    assert case.name == "case" and read_volume(cohort.image(case)).shape == (6, 32, 32)


def test_labels_in_another_grid_come_onto_the_images(tmp_path):
    affine = np.array([[0, -1.0, 0, 5], [-1.0, 0, 0, 7], [0, 0, 2.5, -3], [0, 0, 0, 1]])
    save(tmp_path / "images" / "a.nii.gz", image_of(blob()), affine)
    image = read_volume(tmp_path / "images" / "a.nii.gz")
    turned = sitk.DICOMOrient(sitk.ReadImage(str(save(tmp_path / "t.nii.gz", blob(centre=(9, 20)), affine))), "RAS")
    (tmp_path / "labels").mkdir()
    sitk.WriteImage(turned, str(tmp_path / "labels" / "a.nii.gz"))
    cohort = made(tmp_path / "cohort", tmp_path, "blob").cohort
    found = read_labels(cohort.accepted(cohort.state.cases[0].key))
    assert np.allclose(found.affine, image.affine, atol=1e-4) and np.array_equal(found.array, blob(centre=(9, 20)))
    assert not np.allclose(AFFINE, affine)
