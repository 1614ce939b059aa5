"""The queue of a cohort's work: done in order, kept when anything ends, and given up when it ends its own process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.images import Volume, write_labelmap
from SAMFineTuneLib.service.cohort_work import CohortWork, picture_path, pieces, take_up
from SAMFineTuneLib.service.folder_process import STOP

PATIENCE = 300.0  # s: processes start on a busy machine
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def scans(tmp_path):
    """Two scans of different size, tilted and flipped."""
    affine = np.diag([-0.8, 0.9, 2.0, 1.0])
    affine[:3, 3] = (10.0, -20.0, 5.0)
    for number in (1, 2):
        array = np.random.default_rng(number).integers(0, 900, (5, 8, 6 + number)).astype(np.int16)
        write_labelmap(tmp_path / "scans" / f"p{number}.nii.gz", array.astype(np.uint16), Volume(array, affine))
    return tmp_path / "scans"


@pytest.fixture
def cohort(scans):
    from SAMFineTuneLib.cohort.create_cohort import create_cohort
    from SAMFineTuneLib.cohort.find_images import find_images

    return create_cohort(f"{scans}-cohort", find_images(scans), ["liver"]).cohort


def answer(work, number):
    """The event with which a piece ends, or waits for its disk."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for event in work.poll():
            if event["number"] == number and event["event"] in ("done", "failed", "stopped", "waits"):
                return event
        time.sleep(0.02)
    raise AssertionError(f"piece {number} did not end; the process printed: {work.last_words()}")


def wait(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def labels_of(cohort, name):
    volume_shape = {"p1": (5, 8, 7), "p2": (5, 8, 8)}[name]
    labels = np.zeros(volume_shape, np.uint8)
    labels[1:3, 2:5, 3:6] = 1
    return labels


def test_a_cohort_is_made_and_a_case_laid_out(scans):
    work = CohortWork(Path(f"{scans}-cohort"), "here")
    number = work.put("create", images=str(scans), labels=["liver"])
    work.start()
    assert answer(work, number)["event"] == "done"
    cohort = Cohort(f"{scans}-cohort")
    told = answer(work, work.put("open", case="", way="order", by="me", without=[]))
    assert told["reason"] and cohort.state.case(told["case"]).taken("you")
    voxels = np.load(told["voxels"])
    assert voxels.shape == (5, 8, 7) and told["labels"] == ""
    assert np.allclose(np.diag(told["affine"]), (-0.8, 0.9, 2.0, 1.0))
    assert picture_path(cohort.folder, told["case"]).exists()
    path = work.folder / "000009.npy"
    np.save(path, labels_of(cohort, "p1"))
    assert answer(work, work.put("keep", 9, case="p1", by="me", leaves=True))["event"] == "done"
    assert not path.exists() and cohort.state.case("p1").state == "corrected" and cohort.state.case("p1").lease is None
    told = answer(work, work.put("open", case="p1", by="me"))
    assert told["start"] == [3, 2, 1] and np.load(told["labels"]).shape == (2, 3, 3)
    keys = [one.key for one in cohort.state.cases]
    assert answer(work, work.put("open", case="", way="order", by="me", without=keys))["case"] == "", "none is left"
    assert answer(work, work.put("due"))["due"] is False, "nothing is accepted yet"
    work.close()
    wait(lambda: not work.is_running)


def test_what_keeps_labels_is_done_after_the_window_has_gone(cohort):
    work = CohortWork(cohort.folder, "here")
    opened = work.put("open", case="p2", by="me")
    number, path = work.reserve()
    np.save(path, labels_of(cohort, "p1"))
    work.put("accept", number, case="p1", by="me", seconds=3.5, prompts=2)
    work.start()
    work.close()
    wait(lambda: not work.is_running)
    review = cohort.state.case("p1").review
    assert cohort.state.case("p1").state == "accepted" and (review.seconds, review.prompts) == (3.5, 2)
    assert work.is_empty and answer(work, opened)["event"] in ("stopped", "done")


def test_a_killed_process_loses_nothing(cohort):
    work = CohortWork(cohort.folder, "here")
    number, path = work.reserve()
    np.save(path, labels_of(cohort, "p1"))
    work.put("accept", number, case="p1", by="me", seconds=None, prompts=None)
    work.start()
    wait(lambda: any(event["event"] == "begin" for event in work.poll()) or work.is_empty)
    work.kill()
    wait(lambda: not work.is_running)
    assert take_up(cohort.folder) in (0, 1)  # none when it was quicker
    wait(lambda: cohort.state.case("p1").state == "accepted")
    wait(lambda: not work.is_running)
    assert take_up(cohort.folder) == 0 and not work.folder.exists()


def test_a_piece_that_ends_its_process_is_given_up(cohort):
    work = CohortWork(cohort.folder, "here")
    number, path = work.reserve()
    np.save(path, labels_of(cohort, "p1"))
    work.put("accept", number, case="p1", by="me", seconds=None, prompts=None, tries=3)
    work.start()
    told = answer(work, number)
    assert told["event"] == "failed" and "three times" in told["text"]
    work.close()
    wait(lambda: not work.is_running)
    assert take_up(cohort.folder) == 0 and path.exists() and work.is_empty, "its labels stay"
    work.close()


@pytest.mark.parametrize("later_window", [False, True])
def test_what_the_disk_refuses_is_written_when_it_can_be(cohort, later_window):
    in_the_way = cohort.folder / "accepted"
    in_the_way.touch()
    work = CohortWork(cohort.folder, "here")
    number, path = work.reserve()
    np.save(path, labels_of(cohort, "p1"))
    work.put("accept", number, case="p1", by="me", seconds=None, prompts=None)
    work.start()
    told = answer(work, number)
    assert told["event"] == "waits" and "as soon as the disk takes it" in told["text"]
    if later_window:
        work.close()
        wait(lambda: not work.is_running)
        in_the_way.unlink()
        assert take_up(cohort.folder) == 1
    else:
        in_the_way.unlink()
        assert answer(work, number)["waited"]
    wait(lambda: cohort.state.case("p1").state == "accepted")
    work.close()


def test_a_stop_drops_what_keeps_nothing(cohort):
    work = CohortWork(cohort.folder)
    work.start()
    number = work.put("propose", again=True, device="cpu")
    told = answer(work, number)
    assert told["event"] == "failed" and "adapter" in told["text"]
    wait(lambda: not work.is_running)  # it gives its memory back
    work.folder.joinpath(STOP).touch()
    number = work.put("propose", again=True, device="cpu")
    assert len(pieces(work.folder)) == 1
    work.start()
    assert answer(work, number)["event"] == "failed", "a new start forgets an old stop"
    wait(lambda: not work.is_running)


def test_another_image_under_the_name_is_refused(cohort, scans):
    work = CohortWork(cohort.folder, "here")
    (scans / "p2.nii.gz").replace(scans / "p1.nii.gz")
    work.start()
    told = answer(work, work.put("open", case="p1", by="me"))
    assert told["event"] == "failed" and "has changed since" in told["text"]
    assert cohort.state.case("p1").lease is None
    work.close()


def test_a_queue_is_named_without_the_path(cohort):
    work = CohortWork(cohort.folder, "here")
    work.put("release", case="p1", by="me")
    assert cohort.folder.name not in str(work.folder)
    assert json.loads(pieces(work.folder)[0].read_text())["what"] == "release"
