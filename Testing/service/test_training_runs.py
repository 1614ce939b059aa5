"""Trainings in processes of their own: followed, stopped, killed, taken up again, found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from case_files import AFFINE, blob, case_folder, image_of

from SAMFineTuneLib.cases.exported_cases import ExportedCase, LabelLayer, read_cases, write_cases
from SAMFineTuneLib.cases.labelled_case import LabelChoice
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.models.adapters.tuning_method import Method
from SAMFineTuneLib.service.folder_process import EVENTS
from SAMFineTuneLib.service.trainings import CASES, TrainingJob, TrainingRun, find_runs, free_name, new_run
from SAMFineTuneLib.training.training_settings import TrainingSettings

PATIENCE = 300.0
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def cases(tmp_path):
    return case_folder(tmp_path / "cases", count=2, shape=(4, 32, 32))


def job(name: str, cases: Path | str = "", steps: int = 2, check: bool = False, **changes) -> TrainingJob:
    """A training of few steps, the decoder only, which learns fastest."""
    settings = TrainingSettings(steps=steps, batch=1, objects=1, rounds=1, test_slices=1, folds=0, device="cpu",
                        method=Method(scope="decoder"), heads=("promptable",), **changes)  # fmt: skip
    return TrainingJob(name, settings=settings.to_dict(), source=str(cases), only_check=check)


def begin(wanted: TrainingJob, **options) -> TrainingRun:
    run = new_run(wanted.name)
    wanted.write(run.folder)
    run.start(**options)
    return run


def until(run: TrainingRun, wanted, what: str) -> list[dict]:
    """Poll until it holds; all events of that time."""
    end, events = time.monotonic() + PATIENCE, []
    while not wanted(events):
        events += run.poll()
        assert time.monotonic() < end, f"waited in vain for {what}: {run.state} {run.last} {run.last_words()}"
        time.sleep(0.01)
    return events


def steps(events: list[dict]) -> list[int]:
    return [event["step"] for event in events if event.get("stage") == "training"]


def test_a_training_from_the_first_look_to_an_adapter_that_can_be_chosen(cases, tmp_path):
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

    run = begin(job("mine", cases))
    events = until(run, lambda _: run.state not in ("running",), "the end")
    assert run.state == "done", run.last
    assert steps(events) == [1, 2] and run.last["adapter"] == "mine" and run.last["heads"] == ["promptable"]
    assert AdapterStore().get("mine").exported is not None
    assert run.report.is_file() and not run.is_running
    assert (os.stat(run.folder).st_mode & 0o077) == 0
    with pytest.raises(UserError, match="already"):
        new_run("mine")
    assert free_name("mine") == "mine-2" and free_name("Léber, 2") == "L-ber-2"
    later = find_runs()[0]
    until(later, lambda _: later.state == "done", "what was")
    assert later.state == "done" and later.last["adapter"] == "mine"
    later.discard()
    assert find_runs() == [] and AdapterStore().get("mine")


@pytest.mark.slow
def test_stopped_killed_and_taken_up_by_a_later_window(cases):
    run = begin(job("mine", cases, steps=400))  # never done
    until(run, lambda events: 2 in steps(events), "step 2")
    run.stop()
    until(run, lambda _: run.state == "stopped" and not run.is_running, "stopping")
    assert run.can_resume
    with pytest.raises(UserError, match="unfinished"):
        new_run("mine")
    later = find_runs()[0]
    until(later, lambda _: later.state == "stopped", "what was")
    later.start()
    first = until(later, lambda events: steps(events), "the step after")
    assert steps(first)[0] > 2, "it went on where it was"
    with pytest.raises(UserError, match=r"running already \(process \d+, for [^)]+\)"):
        run.start()
    os.kill(next(event["pid"] for event in reversed(first) if event["event"] == "begin"), signal.SIGKILL)
    until(later, lambda _: later.state == "interrupted", "its end to be seen")
    assert later.can_resume and not later.is_running
    with open(later.folder / EVENTS, "a") as file:
        file.write('{"event": "prog')  # as a killed process leaves it
    again = TrainingRun(later.folder)
    again.start()
    until(again, lambda events: steps(events), "the third go")
    again.kill()
    until(again, lambda _: again.state == "interrupted", "the kill")
    again.discard()


@pytest.mark.slow
def test_it_stops_in_every_phase_and_goes_on(cases):
    """Reading, testing before, training, testing after, exporting: asked by a file, by a signal, by the pipe's end."""
    wanted = job("mine", cases, steps=3)
    wanted = replace(wanted, settings=wanted.settings | {"folds": 2})
    run = new_run("mine")
    wanted.write(run.folder)
    for stage, how in (("cases", "pipe"), ("before", "file"), ("training", "signal"), ("testing", "pipe"),
                       ("export", "file")):  # fmt: skip
        run = TrainingRun(run.folder)
        run.start()
        seen = until(run, lambda events, stage=stage: any(event.get("stage") == stage for event in events), stage)
        if how == "file":
            run.stop()
        elif how == "signal" and os.name != "nt":
            os.kill(next(event["pid"] for event in reversed(seen) if event["event"] == "begin"), signal.SIGTERM)
        else:
            run.close()
        until(run, lambda _, run=run: run.state not in ("new", "running"), "stopping")
        if stage == "export" and run.state == "done":
            return  # exporting was over before it saw the file
        assert run.state == "stopped", (stage, run.last, run.last_words())
        assert run.can_resume or stage == "cases"
    with pytest.raises(UserError, match="unfinished"):
        new_run("mine")
    run = TrainingRun(run.folder)
    run.start()
    until(run, lambda _: run.state not in ("new", "running"), "the end")
    assert run.state == "done", run.last


def test_it_ends_with_the_program_that_started_it(cases, root):
    wanted = job("mine", cases, steps=500)
    run = new_run("mine")
    wanted.write(run.folder)
    code = ("import sys, pathlib, time; from SAMFineTuneLib.service.trainings import TrainingRun; "
            "run = TrainingRun(pathlib.Path(sys.argv[1])); run.start(); time.sleep(600)")  # fmt: skip
    parent = subprocess.Popen([sys.executable, "-c", code, run.folder], env=os.environ | {"PYTHONPATH": str(root)})
    until(run, lambda events: steps(events), "a step")
    parent.kill()
    parent.wait()
    until(run, lambda _: run.state == "stopped", "stopping")
    assert run.can_resume
    run.discard()


def test_what_is_wrong_with_the_cases_is_a_sentence(cases):
    run = begin(job("check", cases, check=True))
    until(run, lambda _: run.state != "running", "the check")
    assert run.state == "checked" and run.last["names"] == ["label 1"] and run.last["wanted"] == ["1"]
    assert (run.last["cases"], run.last["patients"], run.last["slices"]) == (2, 2, 4)
    assert (run.last["trainings"], run.last["steps"]) == (1, 2) and run.last["seconds"] > 0
    run = begin(job("check", cases, check=True, labels=LabelChoice(("liver",))))
    until(run, lambda _: run.state != "running", "the check")
    assert run.state == "failed" and "No case has the label liver" in run.last["text"]


def test_cases_without_names_come_back_as_they_were(tmp_path):
    labels = blob((6, 32, 32))
    tilt = np.array([[-0.8, 0.6, 0, 5], [-0.6, -0.8, 0, -7], [0, 0, 2.5, 9], [0, 0, 0, 1]], float)
    for affine, kind in ((AFFINE, np.int16), (tilt, np.float32), (tilt, np.float64), (AFFINE, ">i2")):
        folder = tmp_path / f"{np.dtype(kind).str}{len(list(tmp_path.iterdir()))}"
        image = Volume(image_of(labels).astype(kind), affine)
        part, moved = labels[1:5, 4:28, 6:30] * 7, affine.copy()
        moved[:3, 3] += affine[:3, :3] @ (6, 4, 1)
        air = LabelLayer((labels == 0)[:2], affine, {1: "air"})
        layers = [LabelLayer(part, moved, {7: "liver"}), air]
        done = list(write_cases([ExportedCase("1", "1", image, layers)], folder))
        assert done == sorted(done) and done[-1] == 1.0
        (case,) = read_cases(folder)
        volume, found, meaning, _ = case.read()
        assert (volume.array == image.array).all() and np.allclose(volume.affine, affine, atol=1e-6)
        by_name = {name: value for value, name in meaning.names.items()}
        assert ((found == by_name["liver"]) == (labels > 0)).all()
        assert (found == by_name["air"])[:2][labels[:2] == 0].all()
    with pytest.raises(UserError, match="no longer exist"):
        read_cases(tmp_path / CASES)
