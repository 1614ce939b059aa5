"""`samfinetune cohort … --server`: a cohort that a department's server holds, by commands."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from service.department import TOKEN, Department

from SAMFineTuneLib.cli.main import main
from SAMFineTuneLib.cohort.cohort_export import export
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.create_cohort import create_cohort
from SAMFineTuneLib.cohort.find_images import find_images
from SAMFineTuneLib.cohort.review import accept
from SAMFineTuneLib.images import Volume, read_volume, write_labelmap
from SAMFineTuneLib.images.segment_info import SegmentInfo

SHAPE = (5, 8, 7)


@pytest.fixture
def department(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAMFINETUNE_TOKEN", TOKEN)
    affine = np.diag([-0.8, 0.9, 2.0, 1.0])
    affine[:3, 3] = (10.0, -20.0, 5.0)
    for number in range(3):
        array = np.random.default_rng(number).integers(0, 900, SHAPE).astype(np.uint16)
        write_labelmap(tmp_path / "scans" / f"p{number}.nii.gz", array, Volume(array, affine))
    cohort = create_cohort(tmp_path / "liver", find_images(tmp_path / "scans"), ["liver", "spleen"]).cohort
    department = Department(cohort, tmp_path / "server")
    yield department
    department.kill()


@pytest.fixture
def run(department, capsys):
    """Runs a command on the server's cohort; gives its exit code, document and errors."""

    def run(action: str, *words: str, cohort="liver", as_json=True):
        address = ["--server", department.address, *(["--json"] if as_json else [])]
        code = main(["cohort", action, cohort, *words, *address])
        out, error = capsys.readouterr()
        return code, json.loads(out) if as_json and out else out, error

    return run


def test_a_case_is_downloaded_annotated_and_accepted(department, run, tmp_path):
    cohort: Cohort = department.cohort
    code, told, _ = run("next", "--way", "order", "--take", "me", "-o", str(tmp_path / "work"))
    assert code == 0 and told["case"]["name"] == "p0" and told["labels"] is None
    assert cohort.state.case("p0").taken("you")
    (image,) = (tmp_path / "work").iterdir()
    here, there = read_volume(image), read_volume(cohort.image(cohort.state.case("p0")))
    assert (here.array == there.array).all() and np.allclose(here.affine, there.affine)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 2:5, 3:6] = 7
    file = tmp_path / "p0.seg.nrrd"
    write_labelmap(file, labels, here, [SegmentInfo("Spleen", 7, (1.0, 0.5, 0.0))])
    code, told, _ = run("accept", "p0", "--labels", str(file), "--by", "me", "--seconds", "9")
    assert code == 0 and told["case"]["state"] == "accepted"
    accepted = read_volume(cohort.accepted(cohort.state.case("p0").key)).array
    assert (accepted == 2 * (labels == 7)).all(), "it is found by its name"
    assert cohort.state.case("p0").review.seconds == 9
    code, told, _ = run("reopen", "p0")
    assert code == 0 and told["case"]["state"] == "corrected"
    code, told, _ = run("next", "-o", str(tmp_path / "again"))
    mine = next((tmp_path / "again").glob("*-labels.nii.gz"))
    assert told["case"]["name"] == "p0" and (read_volume(mine).array == accepted).all()
    code, _, error = run("refuse", "p0")
    assert code == 2 and "Somebody else" in error
    assert run("refuse", "p1")[0] == 0 and cohort.state.case("p1").state == "refused"
    code, told, _ = run("status")
    assert told["counts"]["refused"] == 1 and "--server" in told["advice"]
    assert run("status", as_json=False)[1].count("somebody works on it") == 1


def test_who_has_a_case_keeps_it_when_labels_are_refused(department, run, tmp_path):
    """A refused command does not change who has a case: nobody, or the reviewer, who can try again."""
    cohort: Cohort = department.cohort
    unreadable, wrong, good = tmp_path / "text.nii.gz", tmp_path / "wrong.nii.gz", tmp_path / "good.nii.gz"
    unreadable.write_text("no image")
    write_labelmap(wrong, np.ones((3, 3, 3), np.uint8), Volume(np.zeros((3, 3, 3)), np.diag([1, 1, 1, 1.0])))
    volume = read_volume(cohort.image(cohort.state.case("p1")))
    write_labelmap(good, np.full(SHAPE, 9, np.uint8), volume)
    files = [unreadable, wrong, good, tmp_path / "missing.nii.gz"]
    for file in files:
        assert run("accept", "p1", "--labels", str(file))[0] == 2
        assert run("accept", "p1", "--labels", str(file), "--by", "me")[0] == 2
        assert cohort.state.case("p1").lease is None
    assert run("next", "--way", "order", "--take", "me")[1]["case"]["name"] == "p0"
    lease = cohort.state.case("p0").lease
    for file in files:
        assert run("accept", "p0", "--labels", str(file), "--by", "me")[0] == 2
        assert run("accept", "p0", "--labels", str(file))[0] == 2
    assert run("refuse", "p0")[0] == 2 and run("reopen", "p0", "--by", "me")[0] == 2
    assert cohort.state.case("p0").lease == lease
    assert run("refuse", "p0", "--by", "me")[0] == 0


def test_results_are_fetched_in_the_chosen_form(department, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cohort = department.cohort
    assert run("report")[0] == 2 and "liver-report" not in os.listdir()
    for number in range(2):
        labels = np.zeros(SHAPE, np.uint8)
        labels[1:3, 2:5, 3 : 5 + number] = 1 + number
        accept(cohort, f"p{number}", labels)
    for form in ("nifti", "nnunet"):
        code, told, _ = run("export", "-o", form, "--form", form)
        export(cohort, tmp_path / "there" / form, form)
        here, there = ({path.relative_to(folder): path for path in folder.rglob("*.*")}
                       for folder in (tmp_path / form, tmp_path / "there" / form))  # fmt: skip
        assert code == 0 and len(told["files"]) == len(there) and here.keys() == there.keys()
        assert all(here[path].read_bytes() == there[path].read_bytes() for path in there)
    code, _, error = run("export", "-o", "nifti")
    assert code == 2 and "exists already" in error
    code, _, error = run("export", "-o", "seg", "--form", "dicom-seg")
    assert code == 2 and not (tmp_path / "seg").exists()
    code, told, _ = run("report")
    assert code == 0 and told["report"] == str(Path("liver-report", "index.html"))
    assert (tmp_path / "liver-report" / "cases.csv").read_text("utf-8").count("liver") == 2
    assert not list(tmp_path.glob("server/cohorts/*/*/tmp*")), "only what is to be fetched lies on the server"


def test_labels_that_lie_elsewhere_are_matched_as_asked(department, run, tmp_path):
    cohort, labels = department.cohort, np.zeros(SHAPE, np.uint8)
    labels[1:3, 2:5, 3:6] = 1
    write_labelmap(tmp_path / "p0.nii.gz", labels, Volume(labels, np.eye(4)))
    code, _, error = run("accept", "p0", "--labels", str(tmp_path / "p0.nii.gz"))
    assert code == 2 and "add --match-labels index" in error
    assert run("accept", "p0", "--labels", str(tmp_path / "p0.nii.gz"), "--match-labels", "index")[0] == 0
    assert (read_volume(cohort.accepted(cohort.state.case("p0").key)).array == labels).all()


def test_a_case_that_cannot_be_downloaded_is_given_back(department, run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = run("next", "-o", str(tmp_path / "file" / "folder"))
    assert code == 2 and "file" in error
    department.cohort.image(department.cohort.state.case("p2")).unlink()
    department.cohort.change(lambda state: state.with_case(state.case("p0").key, state="refused"))
    department.cohort.change(lambda state: state.with_case(state.case("p1").key, state="refused"))
    code, _, error = run("next", "-o", str(tmp_path / "work"), "--take", "me")
    assert code == 2 and "not at" in error
    assert not any(case.lease for case in department.cohort.state.cases)


def test_advised_commands_reach_the_server_and_empty_labels_are_told(department, run, tmp_path, monkeypatch):
    monkeypatch.delenv("SAMFINETUNE_TOKEN")
    (tmp_path / "a token.txt").write_text(TOKEN)
    advice = run("next", "--token-file", str(tmp_path / "a token.txt"), as_json=False)[1]
    command = shlex.split(advice.split("samfinetune ")[-1])
    labels, cohort = tmp_path / "empty.nii.gz", department.cohort
    write_labelmap(labels, np.zeros(SHAPE, np.uint8), read_volume(cohort.image(cohort.state.cases[0])))
    assert main([str(labels) if word == "FILE" else word for word in command]) == 0
    assert len(cohort.state.accepted) == 1
    code, _, error = run("accept", cohort.state.accepted[0].name, "--labels", str(labels), "--token-file",
                         str(tmp_path / "a token.txt"), as_json=False)  # fmt: skip
    assert code == 2 and "cohort reopen" in error
    other = next(case.name for case in cohort.state.cases if case.state == "untouched")
    again = ("accept", other, "--labels", str(labels), "--token-file", str(tmp_path / "a token.txt"))
    assert "Nothing is labelled in it." in run(*again, as_json=False)[1]


def test_a_download_that_is_killed_keeps_its_case_for_a_minute_only(department, run, tmp_path):
    cohort = department.cohort
    command = [sys.executable, "-m", "SAMFineTuneLib", "cohort", "next", "liver", "--server", department.address, "-o",
               str(tmp_path / "work")]  # fmt: skip
    program = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    while not any(case.lease for case in cohort.state.cases):
        time.sleep(0.01)
    program.kill()
    program.wait()
    (lease,) = (case.lease for case in cohort.state.cases if case.lease)
    assert 0 < lease.until - time.time() < 61
    key = run("next", "-o", str(tmp_path / "work"))[1]["case"]["key"]
    assert 590 < cohort.state.case(key).lease.until - time.time() < 601


def test_what_the_server_cannot_do_is_said(department, run, tmp_path):
    labels = tmp_path / "labels.nii.gz"
    write_labelmap(labels, np.ones((3, 3, 3), np.uint8), Volume(np.zeros((3, 3, 3)), np.diag([1, 1, 1, 1.0])))
    for words, text in (
        (("accept", "p0", "--labels", str(labels)), "cannot be used"),
        (("accept", "p0"), "no labels yet"),
        (("accept", "p9"), "no case p9"),
        (("train",), "patients"),
        (("propose",), "No adapter is in use yet"),
        (("train", "--preset", "thorough"), "server chooses"),
    ):
        code, _, error = run(*words, as_json=False)
        assert code == 2 and text in error, (words, error)
    assert run("status", cohort="../liver", as_json=False)[0] == 2
    code, _, error = run("status", cohort="spleen", as_json=False)
    assert code == 2 and "no cohort spleen" in error
    department.kill()
    code, _, error = run("status", as_json=False)
    assert code == 2 and "No server runs" in error
