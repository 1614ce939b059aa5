"""`samfinetune cohort`: what it prints for people and for programs, and one sentence for every wrong input."""

from __future__ import annotations

import json
import shlex
import shutil

import numpy as np
import pytest
from case_files import AFFINE, image_of, save
from small_cohorts import propose_labels, truth

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.images import Volume, read_volume, write_labelmap


@pytest.fixture
def scans(tmp_path):
    """Three images, one of which has labels."""
    for number, name in enumerate("abc"):
        save(tmp_path / "scans" / "images" / f"{name}.nii.gz", image_of(truth(number), number))
    save(tmp_path / "scans" / "labels" / "a.nii.gz", truth(0))
    return tmp_path / "scans"


@pytest.fixture
def cohort(samfinetune, scans, tmp_path):
    assert samfinetune("cohort", "create", "mine", scans, "--labels", "blob").code == 0
    return Cohort(tmp_path / "mine")


def test_from_the_images_to_an_export(samfinetune, scans, tmp_path):
    made = samfinetune("cohort", "create", "mine", scans, "--labels", "blob")
    assert made.code == 0 and "3: 1 accepted, 2 untouched" in made.out, made.err
    assert "samfinetune cohort accept mine b --labels FILE" in made.out
    save(tmp_path / "b.nii.gz", truth(1))
    done = samfinetune("cohort", "accept", "mine", "b", "--labels", "b.nii.gz", "--seconds", "61", "--prompts", "3")
    assert done.code == 0 and done.out.startswith("accepted    b")
    assert samfinetune("cohort", "refuse", "mine", "c").code == 0
    status = samfinetune("cohort", "status", "mine")
    assert [line.split() for line in status.out.splitlines()[-4:]] == [
        ["CASE", "STATE", "CONFIDENCE", "DOUBTFUL", "PROPOSAL'S", "DICE"],
        ["a", "accepted"], ["b", "accepted"], ["c", "refused"]]  # fmt: skip
    assert "All cases are reviewed" in status.out
    assert samfinetune("cohort", "reopen", "mine", "c").code == 0
    report = samfinetune("cohort", "report", "mine")
    assert report.code == 0 and (tmp_path / "mine" / "report" / "index.html").exists()
    out = samfinetune("cohort", "export", "mine", "-o", "out", "--form", "nnunet")
    assert out.code == 0 and (tmp_path / "out" / "labelsTr" / "b.nii.gz").exists()


def test_a_table_to_read_at_a_glance(samfinetune, cohort):
    propose_labels(cohort, "b", truth(1))
    cohort.change(lambda state: state.with_case(state.cases[2].key, problem="It holds no real number."))
    text = samfinetune("cohort", "status", cohort.folder).out
    assert "3: 1 accepted, 1 proposed, 1 untouched" in text and "1 case to review" in text
    rows = {line.split()[0]: line for line in text.splitlines()[-3:]}
    assert "0.70" in rows["b"] and "2 slices" in rows["b"]
    assert rows["c"].endswith("It holds no real number.")


def test_json_throughout(samfinetune, cohort, scans, tmp_path):
    def answer(*arguments):
        result = samfinetune("cohort", *arguments, "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    save(tmp_path / "b.nii.gz", truth(1))
    assert answer("accept", "mine", "b", "--labels", "b.nii.gz", "--prompts", 4)["case"]["review"]["prompts"] == 4
    status = answer("status", "mine")
    assert status["counts"] == {"accepted": 2, "corrected": 0, "proposed": 0, "untouched": 1, "refused": 0}
    assert [case["state"] for case in status["cases"]] == ["accepted", "accepted", "untouched"]
    assert status["labels"] == {"1": "blob"} and status["adapter"] is None
    assert answer("refuse", "mine", "c")["case"]["state"] == "refused"
    assert answer("reopen", "mine", "c")["case"]["state"] == "untouched"
    save(tmp_path / "more" / "d.nii.gz", image_of(truth(5), 5))
    assert answer("add", "mine", "more")["added"] == 1
    shutil.move(scans, tmp_path / "moved")
    found = answer("locate", "mine", "moved")
    assert found["found"] == 3 and found["missing"] == 0
    assert answer("export", "mine", "-o", "out")["form"] == "nifti"
    assert answer("report", "mine", "-o", "page")["report"].endswith("index.html")
    again = answer("create", "two", "moved", "--labels", "blob")
    assert again["counts"]["accepted"] == 1


def test_proposing_and_what_to_review_next(samfinetune, tmp_path):
    pytest.importorskip("torch")
    from proposed_cohorts import untouched_cohort, with_adapter

    cohort = with_adapter(untouched_cohort(tmp_path, 3))
    assert "3 cases can be proposed: samfinetune cohort propose" in samfinetune("cohort", "status", "cohort").out
    save(tmp_path / "cases" / "images" / "b.nii.gz", image_of(truth(9), 9))  # another image than the cohort's b
    (tmp_path / "cases" / "images" / "c.nii.gz").unlink()
    result = samfinetune("cohort", "propose", "cohort", "a", "c", "--json")
    found = json.loads(result.out)
    key = {case.name: case.key for case in cohort.state.cases}
    assert result.code == 2 and found["proposed"] == [key["a"]] and found["failed"] == [key["c"]]
    assert len(found["notes"]) == 1 and "samfinetune cohort locate" in found["notes"][0]

    said = samfinetune("cohort", "next", "cohort", "--way", "easiest", "--take", "word")
    assert said.code == 0 and "a, proposed" in said.out and "--by word" in said.out, said.err
    other = json.loads(samfinetune("cohort", "next", "cohort", "--way", "order", "--json").out)
    assert other["case"]["name"] == "b" and other["labels"] is None and other["doubtful"] == []
    taken = json.loads(samfinetune("cohort", "next", "cohort", "--way", "order", "--take", "word", "--json").out)
    assert taken["case"]["name"] == "a" and taken["labels"].endswith("labels.nii.gz") and taken["reason"]
    assert samfinetune("cohort", "accept", "cohort", "a").code == 2  # somebody else has it
    assert samfinetune("cohort", "accept", "cohort", "a", "--by", "word").code == 0
    for name in "bc":
        assert samfinetune("cohort", "refuse", "cohort", name).code == 0
    assert samfinetune("cohort", "next", "cohort").out.startswith("Nothing is left to review.")


def test_what_is_unusual_about_accepted_labels_is_said(samfinetune, cohort, tmp_path):
    save(tmp_path / "empty.nii.gz", truth(1) * 0)
    done = samfinetune("cohort", "accept", "mine", "b", "--labels", "empty.nii.gz")
    assert done.code == 0 and "Nothing is labelled in it." in done.out
    accepted = cohort.accepted(cohort.state.case("b").key)
    before = accepted.read_bytes()
    done = samfinetune("cohort", "accept", "mine", "b", "--labels", "empty.nii.gz")
    assert done.code == 2 and "cohort reopen" in done.err and accepted.read_bytes() == before
    assert samfinetune("cohort", "reopen", "mine", "b").code == 0
    save(tmp_path / "coarse.nii.gz", truth(1)[:, ::2, ::2], AFFINE @ np.diag([2.0, 2.0, 1.0, 1.0]))
    done = samfinetune("cohort", "accept", "mine", "b", "--labels", "coarse.nii.gz", "--json")
    assert done.code == 0 and "were resampled onto the image's grid" in json.loads(done.out)["notes"][0]


def test_advised_commands_work_whatever_the_scans_are_called(samfinetune, tmp_path):
    """Names that mean something to a shell or to the command, and names that several scans have."""
    names = ("-rf.nii.gz", "a $HOME; b.nii.gz", "one/scan.nii.gz", "two/scan.nii.gz", "it's.nii.gz")
    for number, name in enumerate(names):
        save(tmp_path / "odd $scans" / name, image_of(truth(number), number))
    said = samfinetune("cohort", "create", "odd $cohort", "odd $scans", "--labels", "blob").out
    for number in range(len(names)):
        save(tmp_path / "labels.nii.gz", truth(number))
        command = shlex.split(" ".join(said.split("samfinetune ")[-1].split()))
        done = samfinetune(*["labels.nii.gz" if word == "FILE" else word for word in command])
        assert done.code == 0, (command, done.err)
        said = done.out
        if number == len(names) - 2:  # it advises a training then
            break
    out = samfinetune("cohort", "export", "odd $cohort", "-o", "out")
    assert out.code == 0 and not list((tmp_path / "out").glob("-*"))


def test_labels_that_lie_elsewhere_are_matched_as_asked(samfinetune, scans, tmp_path):
    labels, moved = scans / "labels" / "a.nii.gz", np.eye(4)
    moved[0, 3] = 40.0  # mm
    right = read_volume(labels)
    write_labelmap(labels, right.array, Volume(right.array, right.affine @ moved))
    made = samfinetune("cohort", "create", "without", scans, "--labels", "blob")
    assert made.code == 0 and "--match-labels index" in made.out and "3 untouched" in made.out
    refused = samfinetune("cohort", "accept", "without", "a", "--labels", labels)
    assert refused.code == 2 and "add --match-labels index" in refused.err
    shutil.copytree(scans / "images", tmp_path / "others")
    (tmp_path / "others" / "a.nii.gz").unlink()
    assert samfinetune("cohort", "create", "some", "others", "--labels", "blob").code == 0
    for words in (("create", "with", scans, "--labels", "blob"), ("accept", "without", "a", "--labels", labels),
                  ("add", "some", scans)):  # fmt: skip
        done = samfinetune("cohort", *words, "--match-labels", "index")
        cohort = Cohort(words[1])
        assert done.code == 0 and cohort.state.case("a").state == "accepted", done.err
        assert (read_volume(cohort.accepted(cohort.state.case("a").key)).array == right.array).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "nowhere"),
        ("create", "mine", "scans", "--labels", "blob"),
        ("create", "new", "nowhere", "--labels", "blob"),
        ("create", "new", "scans", "--labels", "blob,Blob"),
        ("create", "new", "scans", "--labels", "blob", "--model", "unknown"),
        ("add", "mine", "nowhere"),
        ("locate", "mine", "labels-only"),
        ("accept", "mine", "b"),
        ("accept", "mine", "zebra", "--labels", "b.nii.gz"),
        ("accept", "mine", "b", "--labels", "missing.nii.gz"),
        ("accept", "mine", "b", "--labels", "scans/images/a.nii.gz"),
        ("accept", "mine", "b", "--labels", "b.nii.gz", "--seconds", "-3"),
        ("accept", "mine", "b", "--labels", "b.nii.gz", "--seconds", "nan"),
        ("refuse", "mine", "zebra"),
        ("reopen", "mine", "b"),
        ("export", "mine", "-o", "scans"),
        ("export", "mine", "-o", "out", "--form", "dicom-seg"),
        ("export", "mine", "-o", "out", "--form", "stl"),
        ("propose", "mine"),
        ("propose", "mine", "--jobs", "0"),
        ("propose", "mine", "--scheduler", "tcp://nowhere:1"),
        ("train", "nowhere"),
        ("next", "mine", "--way", "best"),
        ("dance", "mine"),
    ],
)
def test_wrong_input_is_one_sentence(samfinetune, cohort, tmp_path, arguments):
    save(tmp_path / "b.nii.gz", truth(1))
    save(tmp_path / "labels-only" / "x.nii.gz", np.zeros((3, 9, 9), np.uint8))
    before = cohort.state
    for more in ((), ("--json",)):
        result = samfinetune("cohort", *arguments, *more)
        assert result.code == 2 and not result.out, result
        assert result.err.splitlines()[-1].startswith("samfinetune") and "Traceback" not in result.err
    assert cohort.state == before and not (tmp_path / "new").exists() and not (tmp_path / "out").exists()


def test_names_of_cases_complete_in_a_shell(cohort):
    import argparse

    from SAMFineTuneLib.cli.cohort_on_server import case_names

    assert case_names(argparse.Namespace(cohort=str(cohort.folder))) == ["a", "b", "c"]
    assert case_names(argparse.Namespace(cohort="nowhere")) == []
