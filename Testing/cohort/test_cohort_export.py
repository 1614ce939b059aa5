"""Accepted cases as files for other programs, read back with these programs' own libraries."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pydicom
import pytest
from case_files import blob, image_of
from dicom_samples import write_series
from small_cohorts import propose_labels, small_cohort, truth

from SAMFineTuneLib.cases.cases import find_cases
from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cohort.cohort_export import FORMS, PROVENANCE, export
from SAMFineTuneLib.cohort.create_cohort import add_images, create_cohort
from SAMFineTuneLib.cohort.find_images import find_images
from SAMFineTuneLib.cohort.review import accept
from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import read_volume


def test_nifti(tmp_path):
    cohort = small_cohort(tmp_path, labelled=2)
    files = export(cohort, tmp_path / "out")
    assert {path.name for path in files} == {"a.nii.gz", "b.nii.gz", "labels.json", PROVENANCE}
    written = nibabel.load(tmp_path / "out" / "b.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj).T, truth(1))
    assert np.allclose(written.affine, nibabel.load(tmp_path / "images" / "b.nii.gz").affine)
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {"1": "blob"}


def test_nnunets_layout_is_one_that_we_read_too(tmp_path):
    cohort = small_cohort(tmp_path, labelled=1)
    cohort.change(lambda state: type(state)({3: "cyst", 1: "blob"}, state.cases, state.images))
    accept(cohort, "b", truth(1) * np.uint8(3))
    export(cohort, tmp_path / "out", "nnunet")
    dataset = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert dataset == {"channel_names": {"0": "image"}, "labels": {"background": 0, "cyst": 1, "blob": 2},
                       "numTraining": 2, "file_ending": ".nii.gz"}  # fmt: skip
    cases = find_cases(tmp_path / "out")
    assert [case.id for case in cases] == ["a", "b"]
    for case, labels in zip(cases, (truth(0) * 2, truth(1)), strict=True):
        found = case.read()
        assert np.array_equal(found.labels, labels) and found.meaning.names == {1: "cyst", 2: "blob"}
        assert np.array_equal(found.volume.array, read_volume(tmp_path / "images" / f"{case.id}.nii.gz").array)
    # and a cohort made of it is the same
    again = create_cohort(tmp_path / "again", find_images(tmp_path / "out")).cohort.state
    assert [case.state for case in again.cases] == ["accepted"] * 2
    assert {case.key for case in again.cases} == {case.key for case in cohort.state.accepted}


def test_dicom_seg_with_its_provenance(tmp_path):
    pytest.importorskip("highdicom")
    stored = (image_of(blob((6, 32, 32))) + 100).astype(np.uint16)
    series = write_series(tmp_path / "scans" / "p1", stored, PatientID="1", StudyID="1")
    cohort = create_cohort(tmp_path / "cohort", find_images(tmp_path / "scans"), ["liver"]).cohort
    add_images(cohort, find_images(small_cohort(tmp_path / "other", 2).images))
    propose_labels(cohort, "p1", blob(radius=6.0))
    for name in ("p1", "a", "b"):
        accept(cohort, name, blob())
    notes = []
    files = export(cohort, tmp_path / "out", "dicom-seg", tell=notes.append)
    assert [path.name for path in files] == ["p1.dcm", PROVENANCE] and len(notes) == 2
    seg = pydicom.dcmread(files[0])
    assert seg.Modality == "SEG" and seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series
    about = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert "compact" in about.AlgorithmParameters and "adapter=1," in about.AlgorithmParameters
    assert not seg.get("ContentCreatorName")
    key = cohort.state.case("p1").key
    about = {"case": key, "model": "compact", "adapter": "1", "adapter SHA-256": "not known"}
    assert json.loads(files[1].read_text())["cases"] == {"p1.dcm": about}
    assert read_labels(files[0]).array.sum() == blob().sum()


def test_what_a_form_cannot_hold_is_said(tmp_path):
    pytest.importorskip("highdicom")
    stored = (image_of(blob((6, 32, 32))) + 100).astype(np.uint16)
    positions = [np.array([0.0, 0.0, 2.5 * k]) for k in (0, 1, 3, 4, 5, 6)]  # one slice is missing
    write_series(tmp_path / "scans" / "ct", stored, positions=positions)
    write_series(tmp_path / "scans" / "mr", stored + 1, Modality="MR")
    cohort, notes = create_cohort(tmp_path / "cohort", find_images(tmp_path / "scans"), ["liver", "cyst"]).cohort, []
    for case in cohort.state.cases:
        accept(cohort, case.key, np.ones(read_volume(cohort.image(case)).shape, np.uint8))
    export(cohort, tmp_path / "seg", "dicom-seg", tell=notes.append)
    assert len(notes) == 1 and notes[0].startswith("ct: 1024 voxels on slices missing from the series")
    export(cohort, tmp_path / "nnunet", "nnunet", tell=notes.append)
    assert "several modalities (CT, MR)" in notes[1]
    assert json.loads((tmp_path / "nnunet" / "dataset.json").read_text())["channel_names"] == {"0": "image"}
    export(cohort, tmp_path / "ct", "nnunet", names=["ct"])
    assert json.loads((tmp_path / "ct" / "dataset.json").read_text())["channel_names"] == {"0": "CT"}


def test_a_case_whose_image_is_gone_or_damaged_is_left_out(tmp_path):
    cohort, notes = small_cohort(tmp_path, 3, labelled=3), []
    (tmp_path / "images" / "a.nii.gz").write_bytes(b"damaged")
    (tmp_path / "images" / "b.nii.gz").unlink()
    export(cohort, tmp_path / "out", "nnunet", tell=notes.append)
    assert [path.name for path in (tmp_path / "out" / "imagesTr").iterdir()] == ["c_0000.nii.gz"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["numTraining"] == 1
    assert [note.split(":")[0] for note in notes] == ["a is left out", "b is left out"]


def test_names_that_two_cases_share_get_their_keys(tmp_path):
    cohort = small_cohort(tmp_path / "x", 1, labelled=1)
    add_images(cohort, find_images(small_cohort(tmp_path / "y", 2).images))
    first = cohort.state.cases[0]
    cohort.change(lambda state: state.with_case(state.cases[1].key, image=first.image, state="accepted"))
    accept(cohort, first.key, truth(0))
    cohort.accepted(cohort.state.cases[1].key).write_bytes(cohort.accepted(first.key).read_bytes())
    assert sorted(path.name for path in export(cohort, tmp_path / "out"))[:2] == sorted(
        f"a_{case.key[:6]}.nii.gz" for case in cohort.state.accepted
    )


def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    cohort = small_cohort(tmp_path)
    for form in FORMS:
        with pytest.raises(UserError, match="No case is accepted yet"):
            export(cohort, tmp_path / "out", form)
    accept(cohort, "a", truth(0))
    with pytest.raises(UserError, match="choose nifti, nnunet, dicom-seg"):
        export(cohort, tmp_path / "out", "stl")
    with pytest.raises(UserError, match="new or an empty folder"):
        export(cohort, tmp_path / "images")
    with pytest.raises(UserError, match="None of the accepted cases"):
        export(cohort, tmp_path / "out", "dicom-seg")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DiskError):
            export(cohort, tmp_path / "out", "nnunet")
    (tmp_path / "images" / "a.nii.gz").unlink()
    with pytest.raises(UserError, match="samfinetune cohort locate"):
        export(cohort, tmp_path / "out", "nnunet")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
