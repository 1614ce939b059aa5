"""What reviewers do with cases: accepting, refusing, reopening, leases; files that are damaged or cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from case_files import blob, image_of, save
from small_cohorts import propose_labels, small_cohort, truth

from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cli.main import main
from SAMFineTuneLib.cohort import cohort_state
from SAMFineTuneLib.cohort.choosing import next_case
from SAMFineTuneLib.cohort.cohort_folder import STATE_FILE, Cohort
from SAMFineTuneLib.cohort.cohort_state import Lease, TrainedAdapter
from SAMFineTuneLib.cohort.review import accept, keep_correction, labels_of, refuse, release, reopen, take
from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import read_volume, write_labelmap


@pytest.fixture
def cohort(tmp_path):
    return small_cohort(tmp_path)


def accepted(cohort, name):
    return read_labels(cohort.accepted(cohort.state.case(name).key)).array


def test_accepting_measures_the_proposal(cohort):
    propose_labels(cohort, "b", blob(centre=(14, 17)))
    case = accept(cohort, "b", truth(1), seconds=42.0, prompts=3, by="me")
    assert (case.state, case.lease, case.review.order) == ("accepted", None, 1)
    assert (case.review.seconds, case.review.prompts) == (42.0, 3)
    both = 2 * (truth(1) & blob(centre=(14, 17))).sum() / (truth(1).sum() + blob(centre=(14, 17)).sum())
    assert case.review.dice == {"blob": pytest.approx(both)}
    assert np.array_equal(accepted(cohort, "b"), truth(1))
    assert Cohort(cohort.folder).state == cohort.state


def test_the_label_map_of_another_case_is_noticed(cohort):
    told = []
    accept(cohort, "a", truth(0), tell=told.append)
    assert told == []
    accept(cohort, "b", truth(0), tell=told.append)
    assert told == ["It equals the accepted label map of a; check that it belongs to this image."]
    accept(cohort, "b", truth(1), tell=told.append)
    assert len(told) == 1


def test_without_labels_the_correction_is_accepted_and_else_the_proposal(cohort):
    with pytest.raises(UserError, match="has no labels yet"):
        accept(cohort, "a")
    propose_labels(cohort, "a", truth(0))
    assert accept(cohort, "a").review.dice == {"blob": 1.0}
    propose_labels(cohort, "b", truth(0))
    assert keep_correction(cohort, "b", truth(1)).state == "corrected"
    accept(cohort, "b")
    assert np.array_equal(accepted(cohort, "b"), truth(1))
    assert not cohort.corrected(cohort.state.case("b").key).exists()


def test_a_reopened_case_keeps_its_place_and_its_work_counts(cohort):
    for number, name in enumerate("abc"):
        accept(cohort, name, truth(number), seconds=10 if name == "a" else None, prompts=2)
    reopen(cohort, "a")
    accept(cohort, "c", truth(1), seconds=7, prompts=3)  # once more: the figures are replaced
    again, third = accept(cohort, "a", seconds=5), cohort.state.case("c")
    assert (again.review.order, again.review.seconds, again.review.prompts) == (1, 15, 2)
    assert (third.review.order, third.review.seconds, third.review.prompts) == (3, 7, 3)
    reopen(cohort, "c")
    assert cohort.state.next_order == 4
    assert [case.name for case in cohort.state.accepted] == ["a", "b"]


def test_a_proposal_by_an_adapter_that_knew_the_case_does_not_count(cohort):
    keys = {case.name: case.key for case in cohort.state.cases}
    adapters = [TrainedAdapter(number, (keys[name],), (), "base", {}, {}, None, True, "", "2026-01-01")
                for number, name in ((1, "b"), (2, "a"))]  # fmt: skip
    cohort.change(lambda state: replace(state, adapters=tuple(adapters)))
    for name, adapter in (("a", 1), ("b", 2), ("c", 2)):
        propose_labels(cohort, name, truth(0), adapter)
    found = {name: accept(cohort, name, truth(0)).review.dice for name in "abc"}
    assert found == {"a": {"blob": 1.0}, "b": {}, "c": {"blob": 1.0}}


def test_reopening_keeps_the_work(cohort):
    accept(cohort, "a", truth(0))
    case = reopen(cohort, "a")
    assert case.state == "corrected"
    assert np.array_equal(read_labels(labels_of(cohort, case)).array, truth(0))
    assert not cohort.accepted(case.key).exists()

    accept(cohort, "a")
    keep_correction(cohort, "a", truth(4))  # newer than what was accepted
    assert cohort.state.case("a").state == "accepted" and np.array_equal(accepted(cohort, "a"), truth(0))
    assert np.array_equal(read_labels(labels_of(cohort, reopen(cohort, "a"))).array, truth(4))

    accept(cohort, "a")
    refuse(cohort, "a")
    assert cohort.state.accepted == () and reopen(cohort, "a").state == "corrected"
    assert np.array_equal(read_labels(labels_of(cohort, cohort.state.case("a"))).array, truth(4))

    assert refuse(cohort, "b").state == "refused" and reopen(cohort, "b").state == "untouched"
    propose_labels(cohort, "c", truth(2))
    refuse(cohort, "c")
    assert reopen(cohort, "c").state == "proposed"
    with pytest.raises(UserError, match="only accepted and refused cases"):
        reopen(cohort, "c")


_TAKES = """
import sys, time
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.review import take, take_next
from SAMFineTuneLib.process_lock import this_process

cohort = Cohort(sys.argv[1])
take(cohort, "a", "me", process=this_process())
take_next(cohort, "order", "me", [cohort.state.case("a").key], process=this_process())
take(cohort, "c", "me")
print("taken", flush=True)
time.sleep(600)
"""


def test_a_case_is_free_as_soon_as_the_process_that_took_it_is_killed(cohort):
    program = subprocess.Popen([sys.executable, "-c", _TAKES, str(cohort.folder)], stdout=subprocess.PIPE, text=True,
                               cwd=Path(__file__).parents[2])  # fmt: skip
    assert program.stdout.readline() == "taken\n"
    assert all(case.taken("you") for case in cohort.state.cases)
    program.kill()
    program.communicate()
    assert [case.taken("you") for case in cohort.state.cases] == [False, False, True], "the third is of no process"
    assert take(cohort, "a", "you").taken("me") and next_case(cohort, "order", "she").case.name == "b"
    other = cohort.state.case("b").lease
    elsewhere = replace(other, process=f"another-computer {other.process.split()[1]}")
    cohort.change(lambda state: state.with_case(state.case("b").key, lease=elsewhere))
    assert cohort.state.case("b").taken("you"), "nobody here knows what runs there"


def test_a_case_is_taken_by_one_at_a_time(cohort):
    assert take(cohort, "a", "me").lease.by == "me"
    for act in (take, refuse, reopen, accept, keep_correction):
        with pytest.raises(UserError, match="Somebody else works on case a"):
            act(cohort, "a", *([truth(0)] if act in (accept, keep_correction) else []), by="you")
    release(cohort, "a", "you")
    assert cohort.state.case("a").taken("you")
    take(cohort, "a", "me")
    case, later = cohort.state.case("a"), time.time() + cohort_state.LEASE - 5
    assert later < case.lease.until < later + 10
    take(cohort, "a", "me", seconds=0.01)
    time.sleep(0.02)
    assert take(cohort, "a", "you").lease.by == "you"
    release(cohort, "", "me")
    assert cohort.state.case("a").taken("me")
    take(cohort, "b", "you")
    release(cohort, "", "you")
    assert not any(case.lease for case in cohort.state.cases)
    assert keep_correction(cohort, "a", truth(0), by="me").state == "corrected"


@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_clocks_of_computers_on_one_drive_may_differ(cohort, monkeypatch, ahead, capsys):
    """File times are the drive's, also where `time.time` of a computer is hours away."""
    now, key = time.time, cohort.state.case("a").key

    def at(difference):
        monkeypatch.setattr(time, "time", lambda: now() + difference)
        return Cohort(cohort.folder)

    take(at(ahead), "a", "me")
    assert at(0).state.case("a").taken("you") and at(ahead).state.case("a").taken("you")
    with pytest.raises(UserError, match="Somebody else works on case a"):
        refuse(at(0), "a", "you")
    written = json.loads((cohort.folder / STATE_FILE).read_text())["cases"]
    until = next(case["lease"]["until"] for case in written if case["key"] == key)
    assert until == pytest.approx(now() + cohort_state.LEASE, abs=30)
    take(at(ahead), "a", "me", seconds=0.01)
    time.sleep(0.02)
    assert take(at(0), "a", "you").lease.by == "you"
    assert at(ahead).state.case("a").taken("me")
    assert main(["cohort", "status", str(cohort.folder)]) == 0
    assert "somebody works on it" in capsys.readouterr().out
    assert not list(cohort.folder.glob(".*partial*"))


def test_labels_in_another_grid_and_by_other_names(cohort, tmp_path):
    larger = np.zeros((6, 40, 40), np.uint8)
    larger[:, 4:36, 4:36] = truth(0)
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])
    affine[:3, 3] = (4, 4, 0)
    fields = {"Segment0_Name": "Blob", "Segment0_ID": "s", "Segment0_LabelValue": "7", "Segment0_Layer": "0"}
    accept(cohort, "a", save(tmp_path / "larger.seg.nrrd", larger * np.uint8(7), affine, fields))
    assert np.array_equal(accepted(cohort, "a"), truth(0))
    wrong = {
        "is not a structure": save(tmp_path / "x.seg.nrrd", truth(0), fields={**fields, "Segment0_Name": "liver",
                                                                             "Segment0_LabelValue": "1"}),
        "value 3": save(tmp_path / "x.nii.gz", truth(0) * np.uint8(3)),
        "an image": save(tmp_path / "y.nii.gz", np.random.default_rng(0).integers(0, 5000, (6, 32, 32), np.int16)),
        "does not exist": tmp_path / "none.nii.gz",
    }  # fmt: skip
    for words, file in wrong.items():
        with pytest.raises(UserError, match=words):
            accept(cohort, "b", file)
    with pytest.raises(UserError, match=r"\(6, 31, 32\)"):
        accept(cohort, "b", truth(0)[:, 1:])
    assert cohort.state.case("b").state == "untouched" and not list(cohort.folder.rglob(".*partial*"))
    assert not cohort.accepted(cohort.state.case("b").key).exists()


def test_labels_that_their_file_gives_no_name_are_said_to_be_left_out(cohort, tmp_path):
    labels = truth(0).copy()
    labels[0, 0, :3] = 7
    fields = {"Segment0_ID": "s", "Segment0_Name": "blob", "Segment0_LabelValue": "1", "Segment0_Layer": "0"}
    told = []
    accept(cohort, "a", save(tmp_path / "a.seg.nrrd", labels, fields=fields), tell=told.append)
    assert told == ["Left out, as the file names no segment for them: 3 voxels of the labels."]
    assert np.array_equal(accepted(cohort, "a"), truth(0))


def test_overlapping_segments_are_refused(cohort, tmp_path):
    layers = np.stack([truth(0), truth(1)], axis=-1)
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(layers, isVector=True)
    fields = {f"Segment{n}_{key}": value for n in (0, 1) for key, value in (
        ("Name", f"blob{n or ''}"), ("ID", f"s{n}"), ("LabelValue", "1"), ("Layer", str(n)))}  # fmt: skip
    for key, value in fields.items():
        image.SetMetaData(key, value)
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    image.SetSpacing((1, 1, 2.5))
    sitk.WriteImage(image, str(tmp_path / "over.seg.nrrd"))
    with pytest.raises(UserError, match="overlap"):
        accept(cohort, "a", tmp_path / "over.seg.nrrd")


def test_an_image_that_changed_is_not_accepted(cohort, tmp_path):
    save(tmp_path / "images" / "a.nii.gz", image_of(truth(0), 99))
    with pytest.raises(UserError, match="has changed since it was added to the cohort"):
        accept(cohort, "a", truth(0))
    (tmp_path / "images" / "b.nii.gz").unlink()
    with pytest.raises(UserError, match="samfinetune cohort locate"):
        accept(cohort, "b", truth(0))


def test_a_damaged_proposal_keeps_nobody_from_accepting(cohort):
    case = propose_labels(cohort, "a", truth(0))
    (cohort.proposal(case.key) / "labels.nii.gz").write_bytes(b"half")
    assert accept(cohort, "a", truth(0)).review.dice == {}
    with pytest.raises(UserError):
        propose_labels(cohort, "b", truth(1))
        (cohort.proposal(cohort.state.case("b").key) / "labels.nii.gz").write_bytes(b"half")
        accept(cohort, "b")


def test_names_and_keys(cohort):
    key = cohort.state.cases[0].key
    assert cohort.state.case(key[:6]) == cohort.state.case(key) == cohort.state.case("a")
    with pytest.raises(UserError, match="no case zebra"):
        cohort.state.case("zebra")
    state = cohort.state.with_case(cohort.state.cases[1].key, image="sub/a.nii.gz")
    with pytest.raises(UserError, match="give one of their keys"):
        state.case("a")


def with_case(**values):
    """Changes the first case of a cohort's file."""

    def change(text: str) -> str:
        content = json.loads(text)
        content["cases"][0] |= values
        return json.dumps(content)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"cases"', '"casus"'),
        lambda text: text.replace('"untouched"', '"lost"'),
        lambda text: text.replace('"key"', '"kee"'),
        lambda text: json.dumps({**json.loads(text), "images": ["x"]}),
        lambda text: json.dumps({**json.loads(text), "labels": {"one": "x"}}),
        lambda text: json.dumps({**json.loads(text), "cases": [3]}),
        lambda text: json.dumps({**json.loads(text), "model": None}),
        lambda text: json.dumps({**json.loads(text), "salt": "word"}),
        lambda text: json.dumps({**json.loads(text), "labels": {"70000": "x"}}),
        lambda text: json.dumps({**json.loads(text), "cases": 2 * json.loads(text)["cases"]}),
        with_case(key="../../x"),
        with_case(image=None),
        with_case(patient=7),
        with_case(review={"order": "first"}),
        with_case(review="done"),
        with_case(lease={"by": "x", "until": "soon"}),
        with_case(proposal={"adapter": 1, "confidence": {"blob": "high"}}),
        lambda text: "[" * 100000,
        lambda text: text.replace('"blob"', '"blob \\ud800"'),
        lambda text: text.replace('"a.nii.gz"', '"a\\u0000.nii.gz"'),
        lambda text: "\x00" * len(text),
    ],
)
def test_a_damaged_file_is_one_sentence_and_stays(cohort, change):
    path = cohort.folder / STATE_FILE
    path.write_text(change(path.read_text()))
    damaged = path.read_bytes()
    for act in (lambda: cohort.state, lambda: Cohort(cohort.folder), lambda: accept(cohort, "a", truth(0))):
        with pytest.raises(UserError, match="is damaged.*restore it from a backup"):
            act()
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("names", [("liver", "Liver "), ("liver", " ")])
def test_labels_of_one_name_are_refused(cohort, names):
    path = cohort.folder / STATE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": dict(zip("12", names, strict=True))}))
    for act in (lambda: cohort.state, lambda: Cohort(cohort.folder), lambda: accept(cohort, "a", truth(0))):
        with pytest.raises(UserError, match="cohort.json” gives two labels the same name"):
            act()


def test_labels_of_a_case_that_was_accepted_and_then_refused_stay(cohort, tmp_path, capsys):
    folder, case = str(cohort.folder), cohort.state.case("a")
    propose_labels(cohort, "a", truth(1))
    accept(cohort, "a", truth(0))
    refuse(cohort, "a")
    write_labelmap(tmp_path / "other.nii.gz", truth(2), read_volume(cohort.image(case)))
    other = ["cohort", "accept", folder, "a", "--labels", str(tmp_path / "other.nii.gz")]
    assert main(other) == 2
    assert "Case a is refused, and was accepted before" in capsys.readouterr().err
    assert np.array_equal(accepted(cohort, "a"), truth(0))
    assert main(["cohort", "accept", folder, "a"]) == 0, "with the labels that it had"
    assert np.array_equal(accepted(cohort, "a"), truth(0))
    refuse(cohort, "a")
    assert main(["cohort", "reopen", folder, "a"]) == 0 and main(other) == 0
    assert np.array_equal(accepted(cohort, "a"), truth(2))


def test_accepted_labels_that_are_gone_are_one_sentence_and_can_be_given_anew(cohort, tmp_path, capsys):
    for name in "abc":
        accept(cohort, name, truth(0))
    cohort.accepted(cohort.state.case("b").key).unlink()
    folder = str(cohort.folder)
    export = ["export", folder, "-o", str(tmp_path / "out"), "--form", "nifti"]
    for command in (["train", folder], ["report", folder], export):
        assert main(["cohort", *command]) == 2
        assert "The accepted labels of case b are not at" in capsys.readouterr().err
    assert labels_of(cohort, cohort.state.case("b")) is None, "the panel opens it without labels"
    write_labelmap(tmp_path / "b.nii.gz", truth(1), read_volume(cohort.image(cohort.state.case("b"))))
    for command in (["reopen", folder, "b"], ["accept", folder, "b", "--labels", str(tmp_path / "b.nii.gz")]):
        assert main(["cohort", *command]) == 0
    assert main(["cohort", "report", folder]) == 0


def test_a_newer_version_says_so(cohort):
    path = cohort.folder / STATE_FILE
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(UserError, match="written by another version"):
        Cohort(cohort.folder)
    (cohort.folder / STATE_FILE).unlink()
    with pytest.raises(UserError, match="holds no cohort"):
        Cohort(cohort.folder)


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root may write anywhere")
def test_a_read_only_folder_can_be_read(cohort):
    cohort.folder.chmod(0o500)
    try:
        assert len(Cohort(cohort.folder).state.cases) == 3
        with pytest.raises(DiskError):
            accept(cohort, "a", truth(0))
    finally:
        cohort.folder.chmod(0o700)


def test_a_full_disk_leaves_the_case_as_it_was(cohort, monkeypatch):
    accept(cohort, "a", truth(0))
    before = cohort.state

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for act in (lambda: accept(cohort, "a", truth(1)), lambda: accept(cohort, "b", truth(1)),
                lambda: reopen(cohort, "a"), lambda: keep_correction(cohort, "c", truth(2)),
                lambda: take(cohort, "c", "me")):  # fmt: skip
        with pytest.raises(DiskError, match="full"):
            act()
    assert Cohort(cohort.folder).state == before and np.array_equal(accepted(cohort, "a"), truth(0))
    assert not list(cohort.folder.rglob("*.partial*"))


def test_unknown_fields_of_later_versions_are_left_out(cohort):
    path = cohort.folder / STATE_FILE
    values = json.loads(path.read_text())
    values["cases"][0]["colour"] = "red"
    values["cases"][0]["lease"] = {"by": "x", "until": 0.0, "more": 1}
    path.write_text(json.dumps(values))
    assert cohort.state.cases[0] == replace(cohort.state.cases[0], lease=Lease("x", 0.0))
